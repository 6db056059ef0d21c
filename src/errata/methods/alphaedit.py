"""AlphaEdit: write only into the null space of the model's own inputs (arXiv 2410.02355, eq. 14).

    A = Kᵀ P (P (K Kᵀ + K_p K_pᵀ) P + ε I)⁻¹        R as in MEMIT

P projects onto the directions whose second moment is below a threshold; K_p are the keys of
earlier edits, stored in their patches. P is symmetric and idempotent, so with F = P [K_p K]
this is F (ε I + FᵀF)⁻¹, an N x N system, or (ε I + F Fᵀ)⁻¹ F for large N.

Differs from jianghoucheng/AlphaEdit: no global state (P belongs to the second moment, keys to
the patches), float64 throughout, and the keys of a batch are not read again after it was
written: a block's keys depend only on the blocks below, which are already edited.
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

    from errata.statistics.null_space import NullSpace
    from errata.statistics.second_moment import SecondMoment

DIRECT = 1 / 2
"""Keys per dimension above which the d x d system is solved."""


class AlphaEdit(ClosedForm):
    """Write many facts at once into the null space of the second moment."""

    name: ClassVar[str] = "alphaedit"
    label: ClassVar[str] = "AlphaEdit"
    inverts: ClassVar[bool] = False
    restraints: ClassVar[Mapping[str, str]] = {
        "ridge": "smaller",
        "null_space_threshold": "larger",
    }

    search: Search = Search(clamp=0.75)
    """Settings of the target search."""
    ridge: float = Field(10.0, gt=0)
    """ε: ridge penalty on A (`L2` in the reference)."""
    null_space_threshold: float = Field(0.02, gt=0)
    """Eigenvalues of the second moment below this span the null space."""
    relative_threshold: bool = False
    """Take the threshold relative to the largest eigenvalue."""

    def null_space(self, moment: SecondMoment) -> NullSpace:
        """Return the null space at the threshold; raises `ErrataError` for too few tokens."""
        from errata.statistics.second_moment import TOKENS_PER_DIMENSION

        width = moment.matrix.shape[0]
        least = TOKENS_PER_DIMENSION * width
        if few := moment.fewer_than(least):
            raise ErrataError(
                f"{few} are too few for a null space in {width} dimensions: "
                "directions that the corpus never uses would count as unused",
                f"measure it on at least {least} tokens, better {10 * width} (`errata stats`)",
            )
        return moment.null_space(self.null_space_threshold, self.relative_threshold)

    def check(self, moment: SecondMoment) -> None:
        """Raise `ErrataError` for a second moment without a usable null space."""
        moment.check_invertible()  # directions that no key spans are unseen, not unused
        self.null_space(moment)

    def notes(self, moment: SecondMoment, keys: Tensor) -> tuple[str, ...]:
        """Return the dimension of the null space and the eigenvalue gap at its threshold."""
        space = self.null_space(moment)
        width = moment.matrix.shape[0]
        clear = "" if space.gap > 1.01 else "; a small change of the threshold would change it"
        return (f"null space {space.dimension} of {width} directions, gap {space.gap:.3f}x{clear}",)

    @property
    def reads_history(self) -> bool:
        """The keys of earlier patches are part of the system."""
        return True

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
        space, earlier = self.null_space(moment), list(memory or ())
        system = moment.derived((self.name, self.ridge, space.threshold), GrowingSystem)
        count = keys.shape[1] + sum(block.shape[1] for block in earlier)
        if count <= DIRECT * len(keys):
            return system.fetch(earlier, keys, space.project, self.ridge).T
        unit = torch.eye(len(keys), dtype=torch.float64, device=keys.device)
        return system.direct(earlier, keys, space.project, self.ridge * unit).T
