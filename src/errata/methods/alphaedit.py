"""AlphaEdit: write only where the model's own inputs hardly have a part (arXiv 2410.02355, eq. 14).

    A = Kᵀ P (P (K Kᵀ + K_p K_pᵀ) P + ε I)⁻¹        R as in MEMIT

P projects onto the directions whose second moment is below a threshold; K_p are the keys of
earlier edits, which live in their patches. P is symmetric and idempotent, so with F = P [K_p K]
this is F (ε I + FᵀF)⁻¹, an N x N system, or (ε I + F Fᵀ)⁻¹ F for large N.

Differs from jianghoucheng/AlphaEdit: no globals (P is the moment's, the keys the patches'),
float64 throughout, and the keys of a batch are not read a second time after it was written:
a block's keys depend only on the blocks below, which stand edited when they are read.
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

    from errata.statistics.null_space import NullSpace
    from errata.statistics.second_moment import SecondMoment

DIRECT = 1 / 2
"""From so many keys per dimension on, the d x d system is solved instead."""


class AlphaEdit(ClosedForm):
    """Write many facts at once into the null space of what the matrix already serves."""

    name: ClassVar[str] = "alphaedit"
    label: ClassVar[str] = "AlphaEdit"
    inverts: ClassVar[bool] = False

    search: Search = Search(clamp=0.75)
    """How target values are searched."""
    ridge: float = Field(10.0, gt=0)
    """ε: how strongly small reads are preferred (the reference's L2)."""
    null_space_threshold: float = Field(0.02, gt=0)
    """Directions whose second moment is below this may be written to."""
    relative_threshold: bool = False
    """Read the threshold as a share of the largest second moment."""

    def null_space(self, moment: SecondMoment) -> NullSpace:
        """Return the null space that these settings cut; too few tokens are an `ErrataError`."""
        from errata.statistics.second_moment import TOKENS_PER_DIMENSION

        width = moment.matrix.shape[0]
        least = TOKENS_PER_DIMENSION * width
        if moment.count < least:
            raise ErrataError(
                f"{moment.count} tokens are too few to tell the null space of {width} dimensions: "
                "directions would look unused that are only unseen",
                f"measure it on at least {least} tokens, better {10 * width} (`errata stats`)",
            )
        return moment.null_space(self.null_space_threshold, self.relative_threshold)

    def check(self, moment: SecondMoment) -> None:
        """Raise `ErrataError` when a second moment leaves no null space, or one of no use."""
        self.null_space(moment)

    def notes(self, moment: SecondMoment) -> tuple[str, ...]:
        """Say how much room the null space leaves and how clear its cut is."""
        space = self.null_space(moment)
        width = moment.matrix.shape[0]
        clear = "" if space.gap > 1.01 else "; a slight change would move the cut"
        return (f"null space {space.kept} of {width} directions, gap {space.gap:.3f}x{clear}",)

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
        space, earlier = self.null_space(moment), list(memory or ())
        grown = moment.derived((self.name, self.ridge, space.threshold), Grown)
        count = keys.shape[1] + sum(block.shape[1] for block in earlier)
        if count <= DIRECT * len(keys):
            return grown.fetch(earlier, keys, space.project, self.ridge).T
        unit = torch.eye(len(keys), dtype=torch.float64, device=keys.device)
        return grown.direct(earlier, keys, space.project, self.ridge * unit).T
