"""ROME: one fact, one block, one rank (arXiv 2202.05262, eq. 2).

    A = k̄ᵀ C⁻¹ / (k̄ᵀ C⁻¹ k₀)        R = v* - W k₀

k̄ is the mean key over context prefixes, k₀ the key of the bare prompt, v* the target output of
the MLP. The targets of several requests are searched together; the requests are then written
one after the other.

Differs from kmeng01/rome: systems with C are solved in float64 instead of inverting C in
float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from errata.core.errors import ErrataError, Hint
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.settings import SEARCH_SPACE, Search
from errata.methods.search_space import Dial, choice

if TYPE_CHECKING:
    from torch import Tensor

    from errata.statistics.second_moment import SecondMoment


class Rome(ClosedForm):
    """Write each fact as a rank-one update of one block's MLP output matrix."""

    name: ClassVar[str] = "rome"
    label: ClassVar[str] = "ROME"
    place: ClassVar = "mlp"
    batch_limit: ClassVar[int | None] = 1
    moments_hint: ClassVar[Hint | None] = Hint(
        "or do without: second_moment=False", "or do without: --no-second-moment"
    )
    depth: ClassVar[tuple[float, float]] = (0.3, 0.3)
    spans: ClassVar[tuple[int, ...]] = (1,)

    search: Search = Search(steps=20)
    """Settings of the target search."""
    second_moment: bool = True
    """Multiply the key by the inverse second moment (without: by the identity)."""

    @property
    def moment_blocks(self) -> tuple[int, ...]:
        """The edited block, unless the second moment is switched off."""
        return self.edited_blocks if self.second_moment else ()

    def search_space(self, moments: Mapping[int, SecondMoment]) -> tuple[Dial, ...]:
        """Return the dials of the target search, and C on and off if there is one."""
        moment = (choice("second_moment", True, False),) if moments else ()
        return (*SEARCH_SPACE, *moment)

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
