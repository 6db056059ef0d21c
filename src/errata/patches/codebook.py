"""A codebook: values that replace a module's output where its input is near a key.

Per token position with module input x, the nearest key i = argmin ‖x - kᵢ‖ (Euclidean, float32);
where ‖x - kᵢ‖ ≤ rᵢ the output is vᵢ, elsewhere it is the module's own. This is the memory of
GRACE (arXiv 2211.11031, section 3.1).
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
    """Keys with their values and radii, all float32."""

    name: ClassVar[str] = "codebook"
    keys: Tensor
    """(n, d_in), n ≥ 1."""
    values: Tensor
    """(n, d_out)."""
    radii: Tensor
    """(n,), not negative."""

    def __post_init__(self) -> None:
        keys, values, radii = self.keys, self.values, self.radii
        fits = (keys.ndim, values.ndim, radii.ndim) == (2, 2, 1)
        fits = fits and len(keys) == len(values) == len(radii) > 0
        dtypes = {tensor.dtype for tensor in (keys, values, radii)}
        if not fits or dtypes != {torch.float32} or bool((radii < 0).any()):
            raise ErrataError(
                "the keys, values and radii of a codebook do not fit together",
                "give (n, d_in) keys, (n, d_out) values and (n,) radii ≥ 0, all float32",
            )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build from named tensors; raises `ErrataError` where they do not fit."""
        if set(tensors) != {"keys", "values", "radii"}:
            raise ErrataError(
                f"a codebook holds keys, values and radii, not {', '.join(sorted(tensors))}",
                "the file is damaged",
            )
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name."""
        return {"keys": self.keys, "values": self.values, "radii": self.radii}

    def __call__(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the output (…, d_out) with values in place where inputs (…, d_in) hit a key."""
        if (inputs.shape[-1], output.shape[-1]) != (self.keys.shape[1], self.values.shape[1]):
            raise ErrataError(
                f"a codebook maps {self.keys.shape[1]} to {self.values.shape[1]} numbers, "
                f"its module {inputs.shape[-1]} to {output.shape[-1]}",
                "the patch was made for another architecture",
            )
        keys, values, radii = (each.to(inputs.device) for each in self.tensors().values())
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        # Through a matrix product, small distances between large vectors would be lost.
        distance = torch.cdist(rows, keys, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.argmin(1)
        hit = distance.gather(1, nearest[:, None])[:, 0] <= radii[nearest]
        chosen = values[nearest].to(output.dtype).view(output.shape)
        return torch.where(hit.view(output.shape[:-1])[..., None], chosen, output)
