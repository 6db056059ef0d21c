"""MEMIT: many facts at once, spread over several blocks (arXiv 2210.07229, eq. 14).

    A = Kᵀ (λ C + K Kᵀ)⁻¹        R = (Z - output of the last block) / remaining blocks

solved as an n x n system: with C = L Lᵀ and F = L⁻¹ K, A = (F (λ I + FᵀF)⁻¹)ᵀ L⁻¹. For large n,
or where C has no Cholesky factor, the d x d system is solved instead.
With `history` the keys of earlier edits are added to K Kᵀ (arXiv 2605.26670).

Differs from kmeng01/memit: blocks are always edited in ascending order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from errata.core.errors import ErrataError
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.settings import Search

if TYPE_CHECKING:
    from torch import Tensor

    from errata.statistics.second_moment import SecondMoment

DIRECT = 1 / 2
"""Keys per dimension above which the d x d system is solved."""


class Memit(ClosedForm):
    """Write many facts at once, spread over several blocks."""

    name: ClassVar[str] = "memit"
    label: ClassVar[str] = "MEMIT"
    restraints: ClassVar[Mapping[str, str]] = {"moment_weight": "smaller"}

    search: Search = Search(steps=20, clamp=0.75)
    """Settings of the target search."""
    moment_weight: float = Field(15000.0, gt=0)
    """λ: weight of the second moment (existing knowledge) against the new facts."""
    history: bool = False
    """Add the keys of earlier patches to the system, with the weight of new ones."""

    @property
    def reads_history(self) -> bool:
        """Whether the keys of earlier patches join those of this one."""
        return self.history

    def read(
        self,
        keys: Tensor,
        bare: Tensor,
        moment: SecondMoment | None,
        memory: Sequence[Tensor] | None,
    ) -> Tensor:
        """Return A: (n, d_in)."""
        import torch

        from errata.methods.closed_form.solve import GrowingSystem

        assert moment is not None
        keys, weight = keys.double(), self.moment_weight
        earlier = list(memory or ()) if self.history else []
        system = moment.derived((self.name, weight), GrowingSystem)
        factor, width = moment.factor, len(keys)
        count = keys.shape[1] + sum(block.shape[1] for block in earlier)
        if factor is None or count > DIRECT * width:
            base = weight * moment.matrix.to(keys)
            try:
                return system.direct(earlier, keys, lambda block: block.to(keys), base).T
            except ErrataError:
                if factor is None:
                    raise moment.singular() from None
                raise

        def whiten(block: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(factor, block.to(factor), upper=False)

        fetched = system.fetch(earlier, keys, whiten, weight)
        return torch.linalg.solve_triangular(factor.T, fetched, upper=True).T
