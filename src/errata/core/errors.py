"""The exception for errors that users can correct.

`ErrataError` states what is wrong with the user's value, then gives hints on how to correct it. The
command line prints an `error:` line followed by `hint:` lines. A hint that names a flag is a
`Hint`, with a second form for Python. `assert` is for internal invariants.
"""

from __future__ import annotations


class Hint(str):
    """A hint for users of the Python API, with another form for the command line."""

    command: str

    def __new__(cls, python: str, command: str | None = None) -> Hint:
        """Take the hint for Python and, where it differs, the one for the command line."""
        hint = super().__new__(cls, python)
        hint.command = python if command is None else command
        return hint


def command_hints(problem: ErrataError) -> list[str]:
    """Return the hints of an error in their form for the command line."""
    return [hint.command if isinstance(hint, Hint) else hint for hint in problem.hints]


class ErrataError(Exception):
    """An error that the user can correct: a message and, if known, hints on how.

    `hints` and `str()` have the form for Python; see `command_hints` for the other one.
    """

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"hint: {hint}" for hint in self.hints)])
