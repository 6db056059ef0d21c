"""Callbacks by which long-running work reports progress and messages."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of units done and the total."""
Say = Callable[[str], None]
"""Called with one line for the user."""


def shifted(progress: Progress, before: int, total: int) -> Progress:
    """Report progress as part of larger work with `before` units done already, of `total`."""
    return lambda done, _: progress(before + done, total)


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def say_nothing(line: str) -> None:
    """Show no message."""
