"""How long work reports where it stands."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the units done and the units in all."""
Say = Callable[[str], None]
"""Called with one line for the user."""


def shifted(progress: Progress, before: int, total: int) -> Progress:
    """Report units as part of a longer work: `before` are done already, `total` is the whole."""
    return lambda done, _: progress(before + done, total)


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def say_nothing(line: str) -> None:
    """Say nothing."""
