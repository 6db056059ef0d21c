"""The null space of a second moment: the directions that a weight's inputs hardly use.

AlphaEdit (arXiv 2410.02355) writes only there, through the projector P. Whichever is smaller is
kept, the basis of these directions or that of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.errors import ErrataError


@dataclass(frozen=True)
class NullSpace:
    """The directions that a weight's inputs hardly use (AlphaEdit, arXiv 2410.02355).

    P = U Uᵀ projects onto them, P = I - V Vᵀ with those in use; the smaller of U, V is kept.
    """

    basis: Tensor
    """U or V: (d_in, at most d_in / 2), float64, orthonormal columns."""
    used: bool
    """Whether `basis` spans the directions in use (V), not those that are not (U)."""
    threshold: float
    """Eigenvalues below this count as unused."""
    below: float
    """The largest eigenvalue under the cut."""
    above: float
    """The smallest eigenvalue over the cut."""

    @classmethod
    def cut(cls, vectors: Tensor, unused: Tensor, *cut: float) -> NullSpace:
        """Keep the smaller part of the eigenvectors (d_in, d_in), of which a mask is unused."""
        used = bool(unused.sum() * 2 >= len(unused))
        return cls(vectors[:, ~unused if used else unused].contiguous(), used, *cut)

    @property
    def width(self) -> int:
        """d_in."""
        return self.basis.shape[0]

    @property
    def kept(self) -> int:
        """Dimension of the null space."""
        return self.width - self.basis.shape[1] if self.used else self.basis.shape[1]

    @property
    def gap(self) -> float:
        """How far apart the eigenvalues at the cut are, as a ratio; near 1 the cut is arbitrary."""
        return self.above / self.below if self.below > 0 else float("inf")

    def project(self, vectors: Tensor) -> Tensor:
        """Return P applied to columns (d_in, n), float64."""
        vectors = vectors.to(self.basis)
        within = self.basis @ (self.basis.T @ vectors)
        return vectors - within if self.used else within

    @classmethod
    def from_projector(cls, projector: Tensor) -> NullSpace:
        """Read a null space from its projector P (d_in, d_in), such as another tool computed."""
        values, vectors = torch.linalg.eigh(projector.double())
        if not torch.allclose(values, values.round().clamp(0, 1), atol=1e-3):
            raise ErrataError("the given P is not a projector: its eigenvalues are not 0 and 1")
        return cls.cut(vectors, values >= 0.5, float("nan"), float("nan"), float("nan"))
