"""MEMIT: many facts at once, spread over several blocks (arXiv 2210.07229, eq. 14).

    A = Kᵀ (λ C + K Kᵀ)⁻¹        R = (Z - what the last block says now) / blocks left

solved as an n x n system: with C = L Lᵀ and F = L⁻¹ K, A = ((F (λ I + FᵀF)⁻¹)ᵀ L⁻¹;
where n is large, or C has no Cholesky factor, as it stands.
With `history` the keys of earlier edits join K Kᵀ (arXiv 2605.26670).

Differs from kmeng01/memit: the order of `blocks` is ascending whatever the order given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from errata.core.errors import ErrataError
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.settings import Search

if TYPE_CHECKING:
    from torch import Tensor

    from errata.statistics.second_moment import SecondMoment

DIRECT = 1 / 2
"""From so many keys per dimension on, the d x d system is solved instead."""


class Memit(ClosedForm):
    """Write many facts at once, spread over several blocks."""

    name: ClassVar[str] = "memit"
    label: ClassVar[str] = "MEMIT"

    search: Search = Search(steps=20, clamp=0.75)
    """How target values are searched."""
    moment_weight: float = Field(15000.0, gt=0)
    """λ: how much what the matrix already serves weighs against the new facts."""
    history: bool = False
    """Let the keys of earlier patches weigh like those of this one."""

    def read(
        self,
        keys: Tensor,
        bare: Tensor,
        moment: SecondMoment | None,
        memory: Sequence[Tensor] | None,
    ) -> Tensor:
        """Return A: (n, d_in)."""
        import torch

        from errata.methods.closed_form.solve import Grown

        assert moment is not None
        keys, weight = keys.double(), self.moment_weight
        earlier = list(memory or ()) if self.history else []
        grown = moment.derived((self.name, weight), Grown)
        factor, width = moment.factor, len(keys)
        count = keys.shape[1] + sum(block.shape[1] for block in earlier)
        if factor is None or count > DIRECT * width:
            base = weight * moment.matrix.to(keys)
            try:
                return grown.direct(earlier, keys, lambda block: block.to(keys), base).T
            except ErrataError:
                if factor is None:
                    raise moment.singular() from None
                raise

        def whiten(block: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(factor, block.to(factor), upper=False)

        fetched = grown.fetch(earlier, keys, whiten, weight)
        return torch.linalg.solve_triangular(factor.T, fetched, upper=True).T
