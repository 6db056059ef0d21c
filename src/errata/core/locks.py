"""A lock between processes, which the system frees when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from errata.core.errors import ErrataError


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock that the file `path` stands for; `waiting` is called when another holds it.

    The file is removed at the end. Raises `ErrataError` where it cannot be written.
    """
    told = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise ErrataError(
                f"cannot write {path}: {error.strerror}", "check the folder and its permissions"
            ) from None
        with file:
            if not _held(file, wait=False):
                if not told:
                    waiting()
                told = True
                _held(file, wait=True)
            if not _is(file, path):  # the holder before us removed it; others lock a new one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _held(file: IO[str], wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
