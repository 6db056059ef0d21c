"""Fetch a dataset once from its public home, check it, and keep it.

Where the digest of the published file is known it must be that; otherwise the digest of
what was fetched first is kept beside the file. A kept file is checked every time it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from errata.core.errors import ErrataError
from errata.core.files import replacing, write_text

TIMEOUT = 30.0
"""Seconds without an answer after which a home counts as out of reach."""


def kept_at(url: str, folder: Path) -> Path:
    """Return where the file of a URL is kept, whether it was fetched or not."""
    return folder / url.rsplit("/", 1)[-1]


def fetched(url: str, folder: Path, sha256: str | None = None) -> Path:
    """Return the kept file of a URL, fetching it when there is none.

    Raises `ErrataError` when it cannot be reached, or is not what it should be.
    """
    path = kept_at(url, folder)
    note = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        found = _fetch(url, path, sha256)
        write_text(note, f"{found}\n")
        return path
    expected = sha256 or (note.read_text(encoding="utf-8").strip() if note.is_file() else None)
    found = digest(path)
    if expected is None:
        write_text(note, f"{found}\n")
    elif found != expected:
        raise ErrataError(
            f"{path} is not what was published (SHA-256 {found[:12]}, not {expected[:12]})",
            f"remove it, and it is fetched again from {url}",
            "to use it as it is, give its path in place of the dataset's name",
        )
    return path


def _fetch(url: str, path: Path, sha256: str | None) -> str:
    with replacing(path) as part:
        with part.open("wb") as file:
            for chunk in _chunks(url, path):
                file.write(chunk)
        found = digest(part)
        if sha256 not in (None, found):
            raise ErrataError(
                f"what {url} sent is not the published file "
                f"(SHA-256 {found[:12]}, not {str(sha256)[:12]})",
                "try again later, or give the path of a copy that you trust",
            )
    return found


def _chunks(url: str, path: Path) -> Iterator[bytes]:
    """Yield what a URL sends; raise `ErrataError` when it cannot be had whole."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "errata"}), timeout=TIMEOUT) as answer:
            length, size = answer.headers.get("Content-Length"), 0
            while chunk := answer.read(1 << 20):
                size += len(chunk)
                yield chunk
            if length is not None and int(length) != size:
                raise URLError(f"the connection ended after {size} of {length} bytes")
    except (OSError, HTTPException) as error:
        raise ErrataError(
            f"cannot fetch {url}: {getattr(error, 'reason', None) or error}",
            f"without network: get the file elsewhere and give its path, or put it at {path}",
            "`errata ls datasets` shows what there is without network",
        ) from None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
