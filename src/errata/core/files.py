"""Writing files atomically, and reading untrusted ones safely.

A killed process leaves no partial file. Untrusted JSON, however deep, long or malformed, becomes
plain values or a `ValueError`; no code in a file is ever executed.
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
"""Names of the temporary files of `replacing`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block succeeds.

    Raises `ErrataError` when it cannot be written.
    """
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


def remove_parts(folder: Path, names: tuple[str, ...] = ("",)) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Only those of files whose names start with one of `names`, to which no other process writes.
    """
    for path in folder.glob(".*.part"):
        if PART.fullmatch(path.name) and path.name[1:].startswith(names):
            with suppress(OSError):
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `ErrataError` when a disk has less than `needed` bytes free for `what`."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ErrataError(
            f"{what} need {needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free",
            "free some space, or name another folder",
        )


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically."""
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_tensors(path, copies, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Like `write_safetensors`, without copying; the tensors must not share memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # raised when the disk is full, among others
            raise OSError(str(error)) from error


def reason(error: BaseException) -> str:
    """Return the short reason why a file cannot be read or written."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x})"
    if "(os error 19)" in str(error):  # the message of safetensors
        return "it is a folder"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def parse_json(text: str) -> Any:
    """Parse JSON; raises `ValueError` for invalid or too deeply nested JSON, or invalid Unicode."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise ValueError("it contains a number with thousands of digits") from None
    if "\\ud" in text.lower():  # a lone surrogate cannot be encoded as UTF-8
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"it contains a character that is not valid Unicode: {error.object[error.start]!a}"
            ) from None
    return value


@contextmanager
def reading_own(path: Path) -> Iterator[None]:
    """Raise errors from reading a file that errata wrote as an `ErrataError`: it is damaged."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ErrataError(
            f"{path} is damaged: {reason(error)}",
            "remove it and run the same command again, which recreates it",
        ) from None


def check_folder(folder: Path) -> None:
    """Raise `ErrataError` unless the folder is empty or missing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ErrataError(
            f"{folder} is not empty" if folder.is_dir() else f"{folder} is a file",
            "name another folder, or remove it first",
        )


def check_results(folder: Path) -> None:
    """Raise `ErrataError` if runs cannot be saved in `folder`, which need not exist yet."""
    try:
        str(folder).encode()  # it is recorded in text files
        parents = (folder, *folder.absolute().parents)
        nearest = next(path for path in parents if path.exists())
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
    """Yield a temporary folder beside `folder`, renamed to it when the block succeeds.

    Raises `ErrataError` when `folder` is not empty or cannot be written.
    """
    from safetensors import SafetensorError

    check_folder(folder)
    target = folder.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for path in sorted(temporary.rglob("*")):
                if path.is_file():  # libraries differ in the permissions that they set
                    path.chmod(temporary.stat().st_mode & 0o666)
                _sync(path)
            temporary.replace(target)
            _sync(target.parent)
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
