"""Words that messages share: numbers with their nouns, lists that do not fill a screen."""

from __future__ import annotations

from collections.abc import Sequence

PROBLEMS_LISTED = 20
"""Problems that are listed one by one; of the others their number is told."""


def counted(count: int, noun: str, ending: str = "s") -> str:
    """Return a number with its noun, which gets the ending unless there is just one."""
    return f"{count} {noun}{'' if count == 1 else ending}"


def listed(problems: Sequence[str]) -> str:
    """Return problems one a line; of very many the first, and how many more there are."""
    more = len(problems) - PROBLEMS_LISTED
    told = [*problems[:PROBLEMS_LISTED], *([f"… and {more} more"] if more > 0 else [])]
    return "\n".join(told)


def probability(value: float, digits: int = 2) -> str:
    """Return a probability with so many decimals; with two significant digits below 0.01."""
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:z.{digits}f}"
