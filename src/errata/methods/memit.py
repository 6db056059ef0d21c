"""MEMIT: many facts at once, spread over several blocks (arXiv 2210.07229, eq. 14).

    A = Kᵀ (λ C + K Kᵀ)⁻¹        R = (Z - output of the last block) / remaining blocks

solved as an n x n system: with C = L Lᵀ and F = L⁻¹ K, A = (F (λ I + FᵀF)⁻¹)ᵀ L⁻¹. For large n,
or where C has no Cholesky factor, the d x d system is solved instead.
With `history` the keys of earlier edits are added to K Kᵀ (arXiv 2605.26670).

λ is given as a number, or relative to the new keys: λ C has `relative_weight` times the mean
eigenvalue of K Kᵀ, so λ = relative_weight · tr(K Kᵀ) / tr(C), for each block and batch. The
relative form does not depend on the scale of a model's activations. The published λ = 15000 was
chosen for batches of 10,000 facts.

Differs from kmeng01/memit: blocks are always edited in ascending order.
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
    from errata.statistics.second_moment import SecondMoment

RELATIVE_WEIGHT = 1.0
"""λ relative to the keys, for models without a preset."""
DIRECT = 1 / 2
"""Keys per dimension above which the d x d system is solved."""


class Memit(ClosedForm):
    """Write many facts at once, spread over several blocks."""

    name: ClassVar[str] = "memit"
    label: ClassVar[str] = "MEMIT"
    restraints: ClassVar[Mapping[str, str]] = {
        "moment_weight": "smaller",
        "relative_weight": "smaller",
    }
    alternatives: ClassVar = (("moment_weight", "relative_weight"),)

    search: Search = Search(steps=20, clamp=0.75)
    """Settings of the target search."""
    moment_weight: float | None = Field(15000.0, gt=0)
    """λ: weight of the second moment (existing knowledge) against the new facts."""
    relative_weight: float | None = Field(None, gt=0, exclude_if=is_none)
    """λ as a ratio: the mean eigenvalue of λ C to that of K Kᵀ, for each block and batch."""
    history: bool = False
    """Add the keys of earlier patches to the system, with the weight of new ones."""

    @model_validator(mode="before")
    @classmethod
    def _relative_alone(cls, values: Any) -> Any:
        relative = isinstance(values, dict) and values.get("relative_weight") is not None
        return {"moment_weight": None, **values} if relative else values

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if (self.moment_weight is None) == (self.relative_weight is None):
            raise ValueError("needs one of moment_weight and relative_weight")
        return self

    @classmethod
    def defaults_for(cls, block_count: int) -> dict[str, Any]:
        """Return blocks by depth, a relative λ, and a search that goes on until targets hold."""
        return {**super().defaults_for(block_count), "relative_weight": RELATIVE_WEIGHT}

    def weight(self, keys: Tensor, moment: SecondMoment) -> float:
        """Return λ for keys (d_in, n)."""
        if self.relative_weight is None:
            assert self.moment_weight is not None
            return self.moment_weight
        return self.relative_weight / relative(1.0, keys, moment)

    def notes(self, moment: SecondMoment, keys: Tensor) -> tuple[str, ...]:
        """Return λ as a number and as a ratio."""
        ratio = relative(self.weight(keys, moment), keys, moment)
        said = f"λ {self.weight(keys, moment):.4g}, {ratio:.3g} relative to the keys"
        return (*super().notes(moment, keys), said)

    def search_space(self, moments: Mapping[int, SecondMoment]) -> tuple[Dial, ...]:
        """Return the dials of the target search, and λ."""
        return (*SEARCH_SPACE, log("relative_weight", 1e-2, 1e2))

    def scale_free(self, edit: Edit, moments: Mapping[int, SecondMoment]) -> dict[str, float]:
        """Return λ as a number and relative to the keys, the geometric means over blocks."""
        from errata.methods.closed_form.keys import written_keys

        written = written_keys(self, edit, moments)
        weights = [self.weight(K, moment) for moment, K in written]
        ratios = [relative(1.0, K, moment) for moment, K in written]
        return {
            "moment_weight": geometric_mean(weights),
            "relative_weight": geometric_mean(weights) * geometric_mean(ratios),
        }

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
        keys, weight = keys.double(), self.weight(keys, moment)
        earlier = list(memory or ()) if self.history else []
        fixed = self.moment_weight is not None
        system = moment.derived((self.name, weight), GrowingSystem) if fixed else GrowingSystem()
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


def relative(weight: float, keys: Tensor, moment: SecondMoment) -> float:
    """Return the ratio of the mean eigenvalue of λ C to that of K Kᵀ: λ tr(C) / tr(K Kᵀ)."""
    energy = keys.double().square().sum()
    return float(weight * moment.matrix.double().trace().to(energy) / energy)
