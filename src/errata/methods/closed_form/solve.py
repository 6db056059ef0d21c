"""The linear systems of closed-form edits, extended by the keys of earlier edits.

Two equal forms of one solution, with H the features of all keys (d, N), E the new columns:

    H (ρ I + HᵀH)⁻¹ E        N x N, for few keys; its Cholesky factor grows by blocks
    (B + H Hᵀ)⁻¹ H E         d x d, for many; earlier keys enter as a sum, so memory is constant

`GrowingSystem` stores the factor of earlier keys, extended batch by batch in their order, so that
a batch costs no more than its own keys and a new process computes the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from errata.core.errors import ErrataError

Features = Callable[[Tensor], Tensor]


class GrowingSystem:
    """The system of one weight with the keys of earlier edits, extended as they are given."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.blocks: list[Tensor] = []
        self.features: list[Tensor] = []
        self.factor: Tensor | None = None
        """Lower Cholesky factor of ρ I + HᵀH of the features so far."""
        self.gram: Tensor | None = None
        """H Hᵀ of the blocks so far; features are released once it exists."""

    def fetch(
        self, earlier: Sequence[Tensor], keys: Tensor, features_of: Features, ridge: float
    ) -> Tensor:
        """Return H (ρ I + HᵀH)⁻¹ restricted to the new keys' columns: (d, n), float64."""
        if self.gram is not None or not self._begins(earlier):
            self._forget()
        for block in earlier[len(self.blocks) :]:
            found = features_of(block)
            self.factor = self._extended(found, ridge)
            self.blocks.append(block)
            self.features.append(found)
        new = features_of(keys)
        factor = self._extended(new, ridge)
        held, count = len(factor) - new.shape[1], new.shape[1]
        unit = torch.eye(count, dtype=new.dtype, device=new.device)
        low = factor[held:, held:]
        last = torch.cholesky_solve(unit, low)  # (n, n)
        found = new @ last
        if held:
            first = torch.linalg.solve_triangular(
                factor[:held, :held].T, factor[held:, :held].T @ last, upper=True
            )
            for start, part in _placed(self.features):
                found -= part @ first[start : start + part.shape[1]]
        return found

    def direct(
        self, earlier: Sequence[Tensor], keys: Tensor, features_of: Features, base: Tensor
    ) -> Tensor:
        """Return (B + H Hᵀ)⁻¹ H restricted to the new keys' columns: (d, n), float64."""
        if not self._begins(earlier):
            self._forget()
        if self.gram is None:
            self.gram = torch.zeros_like(base)
            self.factor, self.features, self.blocks = None, [], []
        for block in earlier[len(self.blocks) :]:
            found = features_of(block)
            self.gram += found @ found.T
            self.blocks.append(block)
        new = features_of(keys)
        system = torch.addmm(self.gram, new, new.T) + base
        return _solved(system, new)

    def _begins(self, earlier: Sequence[Tensor]) -> bool:
        """Whether the stored blocks are the first of `earlier`."""
        return len(self.blocks) <= len(earlier) and all(
            ours is theirs or torch.equal(ours, theirs)
            for ours, theirs in zip(self.blocks, earlier, strict=False)
        )

    def _extended(self, new: Tensor, ridge: float) -> Tensor:
        """Return the factor with the rows of new features below: [[L, 0], [B, L']]."""
        count = new.shape[1]
        own = new.T @ new + ridge * torch.eye(count, dtype=new.dtype, device=new.device)
        if self.factor is None:
            return _chol(own)
        size = len(self.factor)
        cross = torch.cat([part.T @ new for part in self.features])  # (held, n)
        below = torch.linalg.solve_triangular(self.factor, cross, upper=False)
        grown = new.new_zeros(size + count, size + count)
        grown[:size, :size] = self.factor
        grown[size:, :size] = below.T
        grown[size:, size:] = _chol(own - below.T @ below)
        return grown


def _placed(parts: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    """Return parts with their first columns."""
    found, start = [], 0
    for part in parts:
        found.append((start, part))
        start += part.shape[1]
    return found


def _solved(system: Tensor, columns: Tensor) -> Tensor:
    """Solve by Cholesky, or by LU where the system is not positive definite after rounding."""
    factor, failed = torch.linalg.cholesky_ex(system)
    if not failed and factor.isfinite().all():
        half = torch.linalg.solve_triangular(factor, columns, upper=False)
        return torch.linalg.solve_triangular(factor.T, half, upper=True)
    found, failed = torch.linalg.solve_ex(system, columns)
    if failed or not found.isfinite().all():
        raise _indistinct()
    return found


def _chol(system: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed or not factor.isfinite().all():
        raise _indistinct()
    return factor


def _indistinct() -> ErrataError:
    return ErrataError(
        "the edits cannot be told apart: their keys are not finite or not independent",
        "are two requests about the same subject and prompt, or does the model hold NaN?",
    )
