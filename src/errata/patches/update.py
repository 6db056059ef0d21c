"""`Update`: the change Δ of one weight, low-rank, dense or sparse, with or without edit keys.

The weight of a linear layer has the layout (d_out, d_in), also where the model stores its
transpose; every other weight (embedding, norm, bias) has the model's own layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from errata.core.errors import ErrataError


@dataclass(frozen=True, eq=False)
class Update:
    """The change of one weight: as factors Δ = R A, dense, or by its non-zero values."""

    R: Tensor | None
    """(d_out, n), float32; None for a dense or sparse Δ."""
    A: Tensor
    """(n, d_in), float32; Δ itself when dense; its non-zero values (m,) when sparse."""
    K: Tensor | None = None
    """(d_in, m), float32: the edit keys; for m > d_in, d_in columns with the same K Kᵀ.
    None for an edit without keys."""
    positions: Tensor | None = None
    """Sparse: (m,), ascending indices of the values in the flattened Δ; int32 if they fit."""
    full: tuple[int, ...] = ()
    """Sparse: the shape of Δ."""

    @classmethod
    def of(cls, R: Tensor, A: Tensor, K: Tensor | None = None) -> Update:
        """Build from factors of any float dtype, stored as R A or as Δ, whichever is smaller."""
        d_out, n, d_in = R.shape[0], A.shape[0], A.shape[1]
        if K is not None:
            K = (torch.linalg.qr(K.double().T, mode="r").R.T if K.shape[1] > d_in else K).float()
        update = cls(R.float(), A.float(), K)
        return cls(None, update.delta(), K) if n * (d_out + d_in) > d_out * d_in else update

    @classmethod
    def of_delta(cls, delta: Tensor, K: Tensor | None = None) -> Update:
        """Build from Δ, exact in float32; sparse if that is smaller."""
        delta = delta.detach().float().contiguous()
        K = None if K is None else K.float()
        wide = torch.int32 if delta.numel() < 2**31 else torch.int64
        positions = delta.flatten().nonzero().flatten().to(wide)
        if len(positions) * (4 + wide.itemsize) >= 4 * delta.numel():
            return cls(None, delta, K)
        values = delta.flatten()[positions.long()]
        return cls(None, values, K, positions, tuple(delta.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of Δ: (d_out, d_in) for a matrix."""
        if self.positions is not None:
            return self.full
        return tuple(self.A.shape) if self.R is None else (len(self.R), self.A.shape[1])

    @property
    def form(self) -> str:
        """`low-rank`, `dense` or `sparse`."""
        if self.R is not None:
            return "low-rank"
        return "dense" if self.positions is None else "sparse"

    def delta(self) -> Tensor:
        """Return Δ, float32, of `shape`."""
        if self.R is not None:
            return (self.R.double() @ self.A.double()).float()
        if self.positions is None:
            return self.A
        flat = self.A.new_zeros(prod(self.full))
        flat[self.positions.long()] = self.A
        return flat.view(self.full)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store: R, A, K, or for a sparse Δ values V, indices I, shape S."""
        held = {} if self.R is None else {"R": self.R}
        if self.positions is None:
            held["A"] = self.A
        else:
            held.update(V=self.A, I=self.positions, S=torch.tensor(self.full))
        return held if self.K is None else {**held, "K": self.K}

    @property
    def first_format(self) -> bool:
        """Whether file format 1 can represent it: a matrix with keys, not sparse."""
        return self.K is not None and self.positions is None and self.A.ndim == 2


FLOATS, INTEGERS = (torch.float32,), (torch.int32, torch.int64)
LETTERS: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]] = {
    "R": (FLOATS, (2,)),
    "A": (FLOATS, (1, 2, 3)),
    "K": (FLOATS, (2,)),
    "V": (FLOATS, (1,)),
    "I": (INTEGERS, (1,)),
    "S": (INTEGERS, (1,)),
}
"""Per letter, the permitted dtypes and numbers of dimensions in a file."""


def read_updates(tensors: Mapping[str, Tensor], path: str, first: bool) -> dict[str, Update]:
    """Return the updates in a file of format 1 (`first`) or 2 by weight.

    Raises `ErrataError` if the tensors are inconsistent.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        weight, _, letter = name.rpartition(".")
        dtypes, dimensions = LETTERS.get(letter, ((), ()))
        if first and (letter not in ("R", "A", "K") or tensor.ndim != 2):
            dtypes = ()
        if tensor.dtype not in dtypes or tensor.ndim not in dimensions:
            raise ErrataError(
                f"{path} contains {name}, which is not part of a patch", "the file is damaged"
            )
        parts.setdefault(weight, {})[letter] = tensor
    for weight, held in parts.items():
        if not _whole(held) or (first and "K" not in held):
            raise ErrataError(
                f"{path}: the tensors of {weight} are inconsistent", "the file is damaged"
            )
    return {name: _update(held) for name, held in sorted(parts.items())}


def _whole(held: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of one weight have one form and consistent shapes."""
    letters = set(held) - {"K"}
    if letters == {"V", "I", "S"}:
        shape, places = tuple(held["S"].tolist()), held["I"].long()
        ascending = bool((places[1:] > places[:-1]).all())
        inside = not len(places) or (int(places[0]) >= 0 and int(places[-1]) < prod(shape))
        fits = bool(shape) and min(shape) > 0 and len(places) == len(held["V"])
        if not (fits and inside and ascending):
            return False
    elif letters in ({"A"}, {"R", "A"}):
        shape = tuple(held["A"].shape)
        if "R" in held and (len(shape) != 2 or held["R"].shape[1] != shape[0]):
            return False
    else:
        return False
    return "K" not in held or held["K"].shape[0] == shape[-1]


def _update(held: Mapping[str, Tensor]) -> Update:
    if "S" in held:
        shape = tuple(int(size) for size in held["S"])
        return Update(None, held["V"], held.get("K"), held["I"], shape)
    return Update(held.get("R"), held["A"], held.get("K"))
