"""The null space of a second moment: directions in which a weight's inputs have little energy.

AlphaEdit (arXiv 2410.02355) restricts edits to it with the projector P. The smaller of two bases is
stored: that of the null space or that of its complement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.errors import ErrataError


@dataclass(frozen=True)
class NullSpace:
    """Directions in which a weight's inputs have little energy (AlphaEdit, arXiv 2410.02355).

    P = U Uᵀ projects onto them; P = I - V Vᵀ with V of the complement. The smaller basis is stored.
    """

    basis: Tensor
    """U or V: (d_in, at most d_in / 2), float64, orthonormal columns."""
    used: bool
    """Whether `basis` spans the complement (V), not the null space (U)."""
    threshold: float
    """Eigenvectors with eigenvalues below this span the null space."""
    below: float
    """The largest eigenvalue below the threshold."""
    above: float
    """The smallest eigenvalue above the threshold."""

    @classmethod
    def cut(cls, vectors: Tensor, unused: Tensor, *cut: float) -> NullSpace:
        """Build from eigenvectors (d_in, d_in) and the mask (d_in,) of those in the null space.

        `cut` are the fields `threshold`, `below` and `above`.
        """
        used = bool(unused.sum() * 2 >= len(unused))
        return cls(vectors[:, ~unused if used else unused].contiguous(), used, *cut)

    @property
    def width(self) -> int:
        """d_in."""
        return self.basis.shape[0]

    @property
    def dimension(self) -> int:
        """Dimension of the null space."""
        return self.width - self.basis.shape[1] if self.used else self.basis.shape[1]

    @property
    def gap(self) -> float:
        """Ratio of the eigenvalues above and below the threshold; near 1 the cut is arbitrary."""
        return self.above / self.below if self.below > 0 else float("inf")

    def project(self, vectors: Tensor) -> Tensor:
        """Return P applied to columns (d_in, n), float64."""
        vectors = vectors.to(self.basis)
        within = self.basis @ (self.basis.T @ vectors)
        return vectors - within if self.used else within

    @classmethod
    def from_projector(cls, projector: Tensor) -> NullSpace:
        """Return the null space of a projector P (d_in, d_in), for example from another tool.

        Raises `ErrataError` unless its eigenvalues are 0 and 1.
        """
        values, vectors = torch.linalg.eigh(projector.double())
        if not torch.allclose(values, values.round().clamp(0, 1), atol=1e-3):
            raise ErrataError("the given P is not a projector: its eigenvalues are not 0 and 1")
        return cls.cut(vectors, values >= 0.5, float("nan"), float("nan"), float("nan"))
