"""The one exception that users of errata see.

`ErrataError` says what is wrong with the user's own value, then gives hints on
what to do. The command line prints it as an `error:` line followed by `hint:`
lines; `assert` is kept for our own invariants.
"""

from __future__ import annotations

from collections.abc import Sequence

PROBLEMS_LISTED = 20
"""Problems that are listed one by one; of the others their number is told."""


class ErrataError(Exception):
    """Something the user can mend: a message and, where we know, what to do about it."""

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"hint: {hint}" for hint in self.hints)])


def listed(problems: Sequence[str]) -> str:
    """Return problems one a line; of very many the first, and how many more there are."""
    more = len(problems) - PROBLEMS_LISTED
    told = [*problems[:PROBLEMS_LISTED], *([f"… and {more} more"] if more > 0 else [])]
    return "\n".join(told)
