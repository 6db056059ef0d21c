"""The null space of a second moment: what AlphaEdit may write to (arXiv 2410.02355)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import ErrataError


@dataclass(frozen=True)
class NullSpace:
    """The directions that a weight's inputs hardly use, as the complement V of them.

    P = I - V Vᵀ projects onto the null space (AlphaEdit, arXiv 2410.02355).
    """

    complement: Tensor
    """V: (d_in, q), float64, orthonormal columns: the directions that are in use."""
    threshold: float
    """Eigenvalues below this count as unused."""
    below: float
    """The largest eigenvalue under the cut."""
    above: float
    """The smallest eigenvalue over the cut."""

    @property
    def kept(self) -> int:
        """Dimension of the null space."""
        return self.complement.shape[0] - self.complement.shape[1]

    @property
    def gap(self) -> float:
        """How far apart the eigenvalues at the cut are, as a ratio; near 1 the cut is arbitrary."""
        return self.above / self.below if self.below > 0 else float("inf")

    def project(self, vectors: Tensor) -> Tensor:
        """Return P applied to columns (d_in, n), float64."""
        vectors = vectors.to(self.complement)
        return vectors - self.complement @ (self.complement.T @ vectors)

    @classmethod
    def from_projector(cls, projector: Tensor) -> NullSpace:
        """Read a null space from its projector P (d_in, d_in), such as another tool computed."""
        values, vectors = torch.linalg.eigh(projector.double())
        if not torch.allclose(values, values.round().clamp(0, 1), atol=1e-3):
            raise ErrataError("the given P is not a projector: its eigenvalues are not 0 and 1")
        return cls(vectors[:, values < 0.5], float("nan"), float("nan"), float("nan"))
