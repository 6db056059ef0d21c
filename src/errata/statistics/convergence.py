"""Convergence of an estimate of C: the estimate from half of its tokens against that from all.

For a held-out key k, the read vector of a single edit is A = C⁻¹k / (kᵀC⁻¹k): with residual R the
edit adds R A to the weight, so an input x changes the output by R (A · x). Two numbers, medians
over held-out keys:

    moved      ‖A_half - A_all‖ / ‖A_all‖, which is also the relative change of the weight update
    response   rms of A_half · x over the other keys x, divided by that of A_all · x: how much more
               the edit would change the output for other text, which C keeps small
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from errata.core.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Convergence(Settings):
    """Read vectors of held-out keys from half of the tokens, compared with those from all."""

    moved: float | None
    """Median relative change; None where C of half of the tokens is singular."""
    response: float | None
    """Median ratio of the responses to other text, half of the tokens to all."""
    keys: int
    """Number of keys."""
    held_out: bool
    """Whether the keys come from text that is not in the estimate."""

    def sentence(self) -> str:
        """Return the result as a sentence."""
        of = "held-out keys" if self.held_out else "keys of the same text"
        if self.moved is None or self.response is None:
            return f"C of half of the tokens is singular: it may be far off ({self.keys} {of})"
        return (
            f"the read vectors of {self.keys} {of} changed by {100 * self.moved:.0f} % between "
            f"half and all of the tokens; from half, edits would disturb other text "
            f"{self.response:.2f}x as much"
        )


def compare_reads(keys: Tensor, half: Tensor | None, full: Tensor, held_out: bool) -> Convergence:
    """Compare C⁻¹K from half and from all of the tokens, for keys K; each is (d_in, n), float64."""
    count = keys.shape[1]
    if half is None:
        return Convergence(moved=None, response=None, keys=count, held_out=held_out)
    keys = keys.to(full)
    reads = [solved / (keys * solved).sum(0) for solved in (half, full)]
    moved = (reads[0] - reads[1]).norm(dim=0) / reads[1].norm(dim=0)
    strength = []
    for read in reads:
        response = (keys.T @ read).fill_diagonal_(0)  # (other keys, n)
        strength.append(response.norm(dim=0))
    ratio = strength[0] / strength[1] if count > 1 else moved.new_ones(1)
    return Convergence(
        moved=float(moved.median()),
        response=float(ratio.median()),
        keys=count,
        held_out=held_out,
    )
