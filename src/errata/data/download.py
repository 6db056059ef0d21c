"""Download a dataset once, verify it and store it.

The file must have the published SHA-256 where that is known; otherwise the SHA-256 of the first
download is recorded beside it. A stored file is verified on every use; if it differs, that is
reported and the file left alone (pooch would overwrite it, and records no first SHA-256).
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
"""Seconds without a response after which a download fails."""


def stored_path(url: str, folder: Path) -> Path:
    """Return the path at which the file of a URL is stored, downloaded or not."""
    return folder / url.rsplit("/", 1)[-1]


def fetch(url: str, folder: Path, sha256: str | None = None) -> Path:
    """Return the stored file of a URL, downloaded if there is none.

    Raises `ErrataError` when it cannot be downloaded or its SHA-256 is not the expected one.
    """
    path = stored_path(url, folder)
    record = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        found = _download(url, path, sha256)
        write_text(record, f"{found}\n")
        return path
    expected = sha256 or (record.read_text(encoding="utf-8").strip() if record.is_file() else None)
    found = digest(path)
    if expected is None:
        write_text(record, f"{found}\n")
    elif found != expected:
        raise ErrataError(
            f"{path} is not the published file (SHA-256 {found[:12]}, expected {expected[:12]})",
            f"remove it to download it again from {url}",
            "to use it anyway, give its path instead of the dataset's name",
        )
    return path


def _download(url: str, path: Path, sha256: str | None) -> str:
    """Download a file atomically and return its SHA-256, which must be `sha256` if given."""
    with replacing(path) as part:
        with part.open("wb") as file:
            for chunk in _chunks(url, path):
                file.write(chunk)
        found = digest(part)
        if sha256 not in (None, found):
            raise ErrataError(
                f"the file sent by {url} is not the published file "
                f"(SHA-256 {found[:12]}, expected {str(sha256)[:12]})",
                "try again later, or give the path of a copy that you trust",
            )
    return found


def _chunks(url: str, path: Path) -> Iterator[bytes]:
    """Yield the response of a URL; raises `ErrataError` when it is unavailable or incomplete."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "errata"}), timeout=TIMEOUT) as response:
            length, size = response.headers.get("Content-Length"), 0
            while chunk := response.read(1 << 20):
                size += len(chunk)
                yield chunk
            if length is not None and int(length) != size:
                raise URLError(f"the connection ended after {size} of {length} bytes")
    except (OSError, HTTPException) as error:
        raise ErrataError(
            f"cannot download {url}: {getattr(error, 'reason', None) or error}",
            f"offline: download the file elsewhere and give its path, or copy it to {path}",
            "`errata ls datasets` lists the datasets that are available offline",
        ) from None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
