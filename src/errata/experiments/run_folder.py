"""Run folders: `results/<METHOD>/run_<NNN>`, numbered, locked while in use, found by parameters.

A run is unfinished until it has a `summary.json`. `run_folder` resumes an unfinished run with the
same parameters unless another process holds its lock. A digest of the parameters is stored next to
`params.json`, so that a search parses only the `params.json` of matching runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from errata.core.errors import ErrataError
from errata.core.files import parse_json, remove_parts, write_text
from errata.core.locks import try_lock

LOCK = ".lock"
DIGEST = ".params.sha256"


class RunFolder(NamedTuple):
    """The folder of a run, locked for this process."""

    path: Path
    resumed: bool
    """Whether an earlier process began it."""


@contextmanager
def run_folder(
    results: Path, label: str, params: dict[str, Any], command: str | None = None
) -> Iterator[RunFolder]:
    """Lock the folder of a run for the `with` block: an unfinished one with `params`, or a new one.

    `params` and `command` are written to `params.json`. Raises `ErrataError` where `results`
    cannot be written.
    """
    parent = results / label
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder, lock, resumed = _unfinished(parent, params) or _new(parent)
    except OSError as error:
        raise ErrataError(
            f"cannot write results to {parent}: {error.strerror}",
            "name another folder: --results DIR",
        ) from None
    try:
        if not resumed:
            text = json.dumps({**params, "command": command}, indent=1, ensure_ascii=False)
            write_text(folder / "params.json", text + "\n")
            write_text(folder / DIGEST, _digest(params) + "\n")
        else:
            _remove_parts(folder)
        yield RunFolder(folder, resumed)
        (folder / LOCK).unlink(missing_ok=True)
    finally:
        lock.release()


def is_unfinished(results: Path, label: str, params: dict[str, Any]) -> bool:
    """Whether there is an unfinished run with these parameters that no other process holds."""
    found = _unfinished(results / label, params)
    if found is not None:
        found[1].release()
    return found is not None


def finished_run(results: Path, label: str, params: dict[str, Any]) -> Path | None:
    """Return the latest finished run with these parameters, None where there is none."""
    found = list(_with_params(results / label, params, finished=True))
    return found[-1] if found else None


def _remove_parts(folder: Path) -> None:
    """Remove half-written files of a killed process from a run whose lock this process holds."""
    for place, below, _ in os.walk(folder):
        remove_parts(Path(place))
        # A run nested in this one has a lock of its own.
        below[:] = [name for name in below if not Path(place, name, LOCK).exists()]


def _unfinished(parent: Path, params: dict[str, Any]) -> tuple[Path, FileLock, bool] | None:
    for folder in _with_params(parent, params, finished=False):
        lock = _lock(folder)
        if lock is not None and (folder / "summary.json").exists():
            lock.release()  # another process finished it before we held the lock
        elif lock is not None:
            return folder, lock, True
    return None


def folders_within(folder: Path) -> list[Path]:
    """Return a folder and all folders below it, runs in the order of their numbers."""
    return sorted({folder, *(path for path in folder.rglob("*") if path.is_dir())}, key=by_number)


def by_number(path: Path) -> list[list[tuple[int, str]]]:
    """Return a key that sorts paths with the numbers in names by value: run_999 before run_1000."""
    return [
        [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", part)]
        for part in path.parts
    ]


def unfinished_runs(folder: Path) -> dict[Path, str]:
    """Return the unfinished runs of errata in a folder tree, each with a hint on resuming it.

    Runs in progress in another process are included.
    """
    found = {}
    for place in folders_within(folder):
        if any((place / name).exists() for name in ("cases.jsonl", "summary.json")):
            continue
        try:
            params = parse_json((place / "params.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(params, dict) and "command" in params:  # a reference's params have none
            found[place] = (
                f"{place} is unfinished; unless it is still running, repeat its command to resume "
                "it" + (f": {params['command']}" if params["command"] else "")
            )
    return found


def _with_params(parent: Path, params: dict[str, Any], finished: bool) -> Iterator[Path]:
    from errata.models.identity import same_record

    wanted, digest = json.loads(json.dumps(_identifying(params))), _digest(params)
    for folder in sorted(parent.glob("run_*"), key=by_number):
        if (folder / "summary.json").exists() is not finished:
            continue
        if _stored_digest(folder) not in (None, digest):  # None: a run of an earlier version
            continue
        try:
            found = parse_json((folder / "params.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(found, dict):
            continue
        if same_record(_identifying(found), wanted):
            yield folder


def _new(parent: Path) -> tuple[Path, FileLock, bool]:
    for number in range(100_000):
        folder = parent / f"run_{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        lock = _lock(folder)
        if lock is not None:
            return folder, lock, False
    raise ErrataError(f"{parent} has too many runs", "name another folder: --results DIR")


def _lock(folder: Path) -> FileLock | None:
    """Lock a folder for this process; None when another one holds it."""
    return try_lock(folder / LOCK)


def _identifying(params: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is found by: not its command, nor where its dataset's file is.

    The cases of a dataset have a digest of their own; its file may move with an installation.
    """
    found = {name: value for name, value in params.items() if name != "command"}
    if isinstance(dataset := found.get("dataset"), dict):
        found["dataset"] = {name: value for name, value in dataset.items() if name != "path"}
    return found


def _digest(params: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_identifying(params), sort_keys=True).encode()).hexdigest()


def _stored_digest(folder: Path) -> str | None:
    try:
        return (folder / DIGEST).read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
