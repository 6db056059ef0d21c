"""ROME: one fact, one block, one rank (arXiv 2202.05262, eq. 2).

    A = k̄ᵀ C⁻¹ / (k̄ᵀ C⁻¹ k₀)        R = v* - W k₀

k̄ is the mean key over prefixes, k₀ the key of the bare prompt, v* what the MLP shall say.
Several requests are searched together and then written one after the other.

Differs from kmeng01/rome: C is not inverted in float32 but solved in float64; a list of
requests is edited whole, not only its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from errata.core.errors import ErrataError
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.settings import Search

if TYPE_CHECKING:
    from torch import Tensor

    from errata.statistics.second_moment import SecondMoment


class Rome(ClosedForm):
    """Write one fact at a time as a rank-one change of one block's MLP output matrix."""

    name: ClassVar[str] = "rome"
    label: ClassVar[str] = "ROME"
    place: ClassVar = "mlp"
    batch_limit: ClassVar[int | None] = 1
    depth: ClassVar[tuple[float, float]] = (0.3, 0.3)

    search: Search = Search(steps=20)
    """How the target value is searched."""
    second_moment: bool = True
    """Weigh the key by the inverse second moment; without, by the identity."""

    @property
    def needs_moment(self) -> bool:
        """Whether `read` uses the second moment."""
        return self.second_moment

    def read(
        self,
        keys: Tensor,
        bare: Tensor,
        moment: SecondMoment | None,
        memory: Sequence[Tensor] | None,
    ) -> Tensor:
        """Return A: (1, d_in)."""
        u = keys.double() if moment is None else moment.solve(keys)  # (d_in, 1)
        match = (u.T @ bare.double()).squeeze()
        if match.abs() <= 1e-6 * u.norm() * bare.double().norm():
            raise ErrataError(
                "the key with prefixes is orthogonal to that of the bare prompt",
                "use fewer or other prefixes",
            )
        return u.T / match
