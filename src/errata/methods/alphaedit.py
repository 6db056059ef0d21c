"""AlphaEdit: write only into the null space of the model's own inputs (arXiv 2410.02355, eq. 14).

    A = Kᵀ P (P (K Kᵀ + K_p K_pᵀ) P + ε I)⁻¹        R as in MEMIT

P projects onto the directions whose second moment is below a threshold, or onto a given share of
all directions, those with the smallest second moment; K_p are the keys of earlier edits, stored
in their patches. ε is a number, or `relative_ridge` times the mean ‖P k‖² of the new keys; shares
and relative values do not depend on the scale of a model's activations. P is symmetric and
idempotent, so with F = P [K_p K] this is F (ε I + FᵀF)⁻¹, an N x N system, or (ε I + F Fᵀ)⁻¹ F
for large N.

Differs from jianghoucheng/AlphaEdit: no global state (P belongs to the second moment, keys to
the patches), float64 throughout, and the keys of a batch are not read again after it was
written: a block's keys depend only on the blocks below, which are already edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from errata.core.errors import ErrataError
from errata.core.settings import is_none
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.settings import SEARCH_SPACE, Search
from errata.methods.search_space import Dial, log

if TYPE_CHECKING:
    from torch import Tensor

    from errata.patches.base import Edit
    from errata.statistics.null_space import NullSpace
    from errata.statistics.second_moment import SecondMoment

DIRECT = 1 / 2
"""Keys per dimension above which the d x d system is solved."""
NULL_SPACE_SHARE, RELATIVE_RIDGE = 0.75, 0.01
"""The size of the null space and the ridge, for models without a preset."""


class AlphaEdit(ClosedForm):
    """Write many facts at once into the null space of the second moment."""

    name: ClassVar[str] = "alphaedit"
    label: ClassVar[str] = "AlphaEdit"
    inverts: ClassVar[bool] = False
    restraints: ClassVar[Mapping[str, str]] = {
        "ridge": "smaller",
        "relative_ridge": "smaller",
        "null_space_threshold": "larger",
        "null_space_share": "larger",
    }
    alternatives: ClassVar = (
        ("ridge", "relative_ridge"),
        ("null_space_threshold", "null_space_share"),
    )

    search: Search = Search(clamp=0.75)
    """Settings of the target search."""
    ridge: float | None = Field(10.0, gt=0)
    """ε: ridge penalty on A (`L2` in the reference)."""
    relative_ridge: float | None = Field(None, gt=0, exclude_if=is_none)
    """ε as a multiple of the mean ‖P k‖² of a batch's keys k, instead of a number."""
    null_space_threshold: float | None = Field(0.02, gt=0)
    """Eigenvalues of the second moment below this span the null space."""
    null_space_share: float | None = Field(None, gt=0, lt=1, exclude_if=is_none)
    """Share of all directions that the null space has, instead of a threshold."""
    relative_threshold: bool = False
    """Take the threshold relative to the largest eigenvalue."""

    @model_validator(mode="before")
    @classmethod
    def _alternatives_alone(cls, values: Any) -> Any:
        given = values if isinstance(values, dict) else {}
        unset = [one for one, other in cls.alternatives if given.get(other) is not None]
        return {**dict.fromkeys(unset), **values} if unset else values

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for one, other in self.alternatives:
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ValueError(f"needs one of {one} and {other}")
        return self

    @classmethod
    def defaults_for(cls, block_count: int) -> dict[str, Any]:
        """Return blocks by depth, a search until targets hold, a relative ridge and a share."""
        free = {"relative_ridge": RELATIVE_RIDGE, "null_space_share": NULL_SPACE_SHARE}
        return {**super().defaults_for(block_count), **free}

    def null_space(self, moment: SecondMoment) -> NullSpace:
        """Return the null space; raises `ErrataError` for too few tokens."""
        from errata.statistics.second_moment import TOKENS_PER_DIMENSION

        width = moment.matrix.shape[0]
        least = TOKENS_PER_DIMENSION * width
        if few := moment.fewer_than(least):
            raise ErrataError(
                f"{few} are too few for a null space in {width} dimensions: "
                "directions that the corpus never uses would count as unused",
                f"measure it on at least {least} tokens, better {10 * width} (`errata stats`)",
            )
        if self.null_space_threshold is None:
            assert self.null_space_share is not None
            return moment.null_space_of(self.null_space_share)
        return moment.null_space(self.null_space_threshold, self.relative_threshold)

    def weight(self, keys: Tensor, space: NullSpace) -> float:
        """Return ε for keys (d_in, n)."""
        if self.ridge is not None:
            return self.ridge
        assert self.relative_ridge is not None
        return self.relative_ridge * projected_energy(keys, space)

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

    def search_space(self, moments: Mapping[int, SecondMoment]) -> tuple[Dial, ...]:
        """Return the dials of the target search, the ridge and the size of the null space."""
        return (
            *SEARCH_SPACE,
            log("relative_ridge", 1e-3, 10.0),
            Dial("null_space_share", "linear", 0.3, 0.97),
        )

    def scale_free(self, edit: Edit, moments: Mapping[int, SecondMoment]) -> dict[str, float]:
        """Return ε and the null space as numbers and in the relative form.

        They are geometric means over blocks.
        """
        from errata.methods.closed_form.keys import written_keys

        written = written_keys(self, edit, moments)
        spaces = [self.null_space(moment) for moment, _ in written]
        keys = [K for _, K in written]
        ridges = [self.weight(K, space) for K, space in zip(keys, spaces, strict=True)]
        energy = [projected_energy(K, space) for K, space in zip(keys, spaces, strict=True)]
        return {
            "ridge": geometric_mean(ridges),
            "relative_ridge": geometric_mean(ridges) / geometric_mean(energy),
            "null_space_threshold": geometric_mean([space.threshold for space in spaces]),
            "null_space_share": geometric_mean([s.dimension / s.width for s in spaces]),
        }

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
        ridge = self.weight(keys, space)
        fixed = self.ridge is not None
        name = (self.name, ridge, space.threshold)
        system = moment.derived(name, GrowingSystem) if fixed else GrowingSystem()
        count = keys.shape[1] + sum(block.shape[1] for block in earlier)
        if count <= DIRECT * len(keys):
            return system.fetch(earlier, keys, space.project, ridge).T
        unit = torch.eye(len(keys), dtype=torch.float64, device=keys.device)
        return system.direct(earlier, keys, space.project, ridge * unit).T


def projected_energy(keys: Tensor, space: NullSpace) -> float:
    """Return the mean of ‖P k‖² over keys (d_in, n)."""
    return float(space.project(keys).square().sum() / keys.shape[1])
