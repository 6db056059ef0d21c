"""Writing files whole or not at all, and reading those of strangers without harm.

A killed writer leaves no torn file. What a file of another hand holds, however deep, long or
broken, becomes plain JSON values or a `ValueError`, and never code that runs.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core.errors import ErrataError

if TYPE_CHECKING:
    from torch import Tensor

PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
"""The names that `replacing` gives."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which replaces `path` when the block ends well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ErrataError(
            f"cannot write {path}: {reason(error)}",
            "check the folder, its permissions and free space",
        ) from error


def remove_parts(folder: Path) -> None:
    """Remove from a folder what `replacing` leaves behind when its process is killed.

    Only for a folder in which no other process writes.
    """
    for path in folder.glob(".*.part"):
        if PART.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `ErrataError` when a disk has less than `needed` bytes free for `what`."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ErrataError(
            f"{what} need {needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free",
            "make room, or name another folder",
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all."""
    held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_tensors(path, held, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Like `write_safetensors` for tensors that share no memory, which are not copied."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # how it tells that the disk is full
            raise OSError(str(error)) from error


def reason(error: BaseException) -> str:
    """Return why a file cannot be read or written, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x})"
    if "(os error 19)" in str(error):  # how safetensors says so
        return "it is a folder"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def parse_json(text: str) -> Any:
    """Return what JSON says; anything that is no JSON, too deep or no text is a `ValueError`."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise ValueError("it holds a number of thousands of digits") from None
    if "\\ud" in text.lower():  # half a surrogate pair is no character that could be written
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"it holds a character that is none: {error.object[error.start]!a}"
            ) from None
    return value


@contextmanager
def reading_own(path: Path) -> Iterator[None]:
    """Tell, as an `ErrataError`, that a file errata wrote is not what it was any more."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ErrataError(
            f"{path} is damaged: {reason(error)}",
            "remove it and give the same command again: it is made anew",
        ) from None


def check_folder(folder: Path) -> None:
    """Raise `ErrataError` unless nothing is lost by writing a folder there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ErrataError(
            f"{folder} is not empty" if folder.is_dir() else f"{folder} is a file",
            "name another folder, or remove it first",
        )


def check_results(folder: Path) -> None:
    """Raise `ErrataError` if runs cannot be saved in `folder`, which need not exist yet."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        problem = None if nearest.is_dir() else os.strerror(errno.ENOTDIR)
        if problem is None and not os.access(nearest, os.W_OK):
            problem = os.strerror(errno.EACCES)
    except (OSError, ValueError) as error:
        problem = reason(error)
    if problem is not None:
        raise ErrataError(
            f"cannot write results to {folder}: {problem}", "name another folder: --results DIR"
        )


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder`, which takes its place when the block ends well."""
    from safetensors import SafetensorError

    check_folder(folder)
    place = folder.resolve()
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for path in sorted(temporary.rglob("*")):
                if path.is_file():  # libraries differ in the permissions that they give
                    path.chmod(temporary.stat().st_mode & 0o666)
                _sync(path)
            temporary.replace(place)
            _sync(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ErrataError(
            f"cannot write {folder}: {getattr(error, 'strerror', None) or error}",
            "check the folder, its permissions and free space",
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
