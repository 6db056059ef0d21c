"""The one exception that users of errata see.

`ErrataError` says what is wrong with the user's own value, then gives hints on
what to do. The command line prints it as an `error:` line followed by `hint:`
lines; `assert` is kept for our own invariants.
"""

from __future__ import annotations


class ErrataError(Exception):
    """Something the user can mend: a message and, where we know, what to do about it."""

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"hint: {hint}" for hint in self.hints)])
