"""Text formatting for messages: counts with nouns, truncated lists, probabilities."""

from __future__ import annotations

from collections.abc import Sequence

PROBLEMS_LISTED = 20
"""Most problems that are listed; the number of further ones is given."""


def counted(count: int, noun: str, ending: str = "s") -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{count} {noun}{'' if count == 1 else ending}"


def listed(problems: Sequence[str]) -> str:
    """Return one problem per line: the first `PROBLEMS_LISTED`, then the number of further ones."""
    more = len(problems) - PROBLEMS_LISTED
    lines = [*problems[:PROBLEMS_LISTED], *([f"… and {more} more"] if more > 0 else [])]
    return "\n".join(lines)


def probability(value: float, digits: int = 2) -> str:
    """Return a probability with `digits` decimals; below 0.01, with two significant digits."""
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:z.{digits}f}"
