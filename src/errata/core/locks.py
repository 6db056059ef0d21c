"""Locks between processes, released by the operating system when their process ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from errata.core.errors import ErrataError


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on the file `path`; `waiting` is called once if another process holds it.

    The file is removed on exit. Raises `ErrataError` if it cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise ErrataError(
            f"cannot write {path}: {error.strerror}", "check the folder and its permissions"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def try_lock(path: Path) -> FileLock | None:
    """Acquire and return a lock on the file `path`; None if another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
