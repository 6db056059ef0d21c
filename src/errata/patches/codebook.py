"""A codebook: values that replace a module's output where its input is near a key.

At a token position with module input x, the nearest key is i = argmin ‖x - kᵢ‖ (Euclidean,
float32). If ‖x - kᵢ‖ ≤ rᵢ, the output is vᵢ; otherwise it is the module's own output. This is the
codebook of GRACE (arXiv 2211.11031, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from errata.core.errors import ErrataError


@dataclass(frozen=True, eq=False)
class Codebook:
    """Keys with their values and deferral radii, all float32."""

    name: ClassVar[str] = "codebook"
    keys: Tensor
    """(n, d_in), n ≥ 1."""
    values: Tensor
    """(n, d_out)."""
    radii: Tensor
    """(n,), non-negative."""

    def __post_init__(self) -> None:
        keys, values, radii = self.keys, self.values, self.radii
        fits = (keys.ndim, values.ndim, radii.ndim) == (2, 2, 1)
        fits = fits and len(keys) == len(values) == len(radii) > 0
        dtypes = {tensor.dtype for tensor in (keys, values, radii)}
        if not fits or dtypes != {torch.float32} or bool((radii < 0).any()):
            raise ErrataError(
                "the keys, values and radii of a codebook have inconsistent shapes or dtypes",
                "give (n, d_in) keys, (n, d_out) values and (n,) radii ≥ 0, all float32",
            )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build from named tensors; raises `ErrataError` if they are inconsistent."""
        if set(tensors) != {"keys", "values", "radii"}:
            raise ErrataError(
                f"a codebook holds keys, values and radii, not {', '.join(sorted(tensors))}",
                "the file is damaged",
            )
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {"keys": self.keys, "values": self.values, "radii": self.radii}

    def __call__(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the output (…, d_out), replaced by values where inputs (…, d_in) match a key.

        Raises `ErrataError` if the dimensions differ from those of the codebook.
        """
        if (inputs.shape[-1], output.shape[-1]) != (self.keys.shape[1], self.values.shape[1]):
            raise ErrataError(
                f"a codebook maps {self.keys.shape[1]} to {self.values.shape[1]} dimensions, "
                f"but its module maps {inputs.shape[-1]} to {output.shape[-1]}",
                "the patch was made for another architecture",
            )
        keys, values, radii = (each.to(inputs.device) for each in self.tensors().values())
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        # Computed by a matrix product, small distances between large vectors would cancel out.
        distance = torch.cdist(rows, keys, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.argmin(1)
        hit = distance.gather(1, nearest[:, None])[:, 0] <= radii[nearest]
        chosen = values[nearest].to(output.dtype).view(output.shape)
        return torch.where(hit.view(output.shape[:-1])[..., None], chosen, output)
