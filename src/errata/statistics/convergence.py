"""How far an estimate of C is from settled: what half of its tokens would have said.

For a held-out key k the read of a single edit is A = C⁻¹k / (kᵀC⁻¹k): with residual R the edit
writes R A, and answers an input x with R (A · x). Two numbers, medians over held-out keys:

    moved      ‖A_half - A_all‖ / ‖A_all‖, which is also how far the change of the weight moved
    response   rms over the other keys x of A_half · x, over that of A_all · x: how much more the
               edit would disturb other text, which C is there to keep small
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from errata.core.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Convergence(Settings):
    """The reads of held-out keys from half of the tokens, against those from all of them."""

    moved: float | None
    """Median relative change; None where half of the tokens is too few to solve with."""
    response: float | None
    """How many times as strongly the half's reads respond to other text."""
    keys: int
    """How many keys."""
    held_out: bool
    """Whether the keys come from text that is not in the estimate."""

    def sentence(self) -> str:
        """Say it in words."""
        of = "held-out keys" if self.held_out else "keys of the same text"
        if self.moved is None or self.response is None:
            return (
                f"half of the tokens is too few to solve with: it may be far off ({self.keys} {of})"
            )
        return (
            f"the read of {self.keys} {of} moved {100 * self.moved:.0f} % between half and all of "
            f"the tokens; from half, edits would disturb other text {self.response:.2f}x as much"
        )


def compare_reads(keys: Tensor, half: Tensor | None, full: Tensor, held_out: bool) -> Convergence:
    """Compare C⁻¹K of half and all of the tokens, for keys K; all are (d_in, n), float64."""
    count = keys.shape[1]
    if half is None:
        return Convergence(moved=None, response=None, keys=count, held_out=held_out)
    keys = keys.to(full)
    reads = [solved / (keys * solved).sum(0) for solved in (half, full)]
    moved = (reads[0] - reads[1]).norm(dim=0) / reads[1].norm(dim=0)
    strength = []
    for read in reads:
        said = (keys.T @ read).fill_diagonal_(0)  # (others, n)
        strength.append(said.norm(dim=0))
    ratio = strength[0] / strength[1] if count > 1 else moved.new_ones(1)
    return Convergence(
        moved=float(moved.median()),
        response=float(ratio.median()),
        keys=count,
        held_out=held_out,
    )
