"""MEMIT: many facts at once, spread over several blocks (arXiv 2210.07229, eq. 14).

    A = Kᵀ (λ C + K Kᵀ)⁻¹        R = (Z - what the last block says now) / blocks left

solved as an n x n system: with C = L Lᵀ and F = L⁻¹ K, A = ((F (λ I + FᵀF)⁻¹)ᵀ L⁻¹.
With `history` the keys of earlier edits join K Kᵀ (arXiv 2605.26670).

Differs from kmeng01/memit: the order of `blocks` is ascending whatever the order given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from errata.methods.closed_form import ClosedForm, fetch
from errata.settings import Search

if TYPE_CHECKING:
    from torch import Tensor

    from errata.moment import SecondMoment


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
        self, keys: Tensor, bare: Tensor, moment: SecondMoment | None, memory: Tensor | None
    ) -> Tensor:
        """Return A: (n, d_in)."""
        import torch

        assert moment is not None
        held = keys.double()
        if self.history and memory is not None:
            held = torch.cat([memory.to(held), held], dim=1)  # (d_in, earlier + n)
        factor = moment.factor
        if factor is None:
            system = self.moment_weight * moment.matrix.to(held) + held @ held.T
            return moment.solve_system(system, keys.double()).T
        white = torch.linalg.solve_triangular(factor, held, upper=False)
        fetched = fetch(white, self.moment_weight, keys.shape[1])
        return torch.linalg.solve_triangular(factor.T, fetched, upper=True).T
