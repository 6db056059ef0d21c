"""The one exception that users of errata see.

`ErrataError` states what is wrong with the user's own value, then gives hints on what to do.
The command line prints it as an `error:` line followed by `hint:` lines. A hint that names a flag
is a `Hint`, which has a form for programs as well. `assert` is for our own invariants.
"""

from __future__ import annotations


class Hint(str):
    """A hint for a program, with the form that the command line shows in its place."""

    command: str

    def __new__(cls, python: str, command: str | None = None) -> Hint:
        """Take the words for a reader of Python and those for a reader of the command line."""
        hint = super().__new__(cls, python)
        hint.command = python if command is None else command
        return hint


def command_hints(problem: ErrataError) -> list[str]:
    """Return the hints of an error in the words of the command line."""
    return [hint.command if isinstance(hint, Hint) else hint for hint in problem.hints]


class ErrataError(Exception):
    """Something that the user can correct: a message and, if known, what to do about it.

    `hints` and `str()` are in the words of Python; see `command_hints` for the other form.
    """

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"hint: {hint}" for hint in self.hints)])
