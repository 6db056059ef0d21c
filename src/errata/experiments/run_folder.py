"""Run folders: `results/<METHOD>/run_<NNN>`, numbered, locked while in use, found again.

A run is unfinished while it has no `summary.json`. Asking for a run with the same params
gives the unfinished folder back, unless another process is at work in it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from errata.core.errors import ErrataError
from errata.core.files import parse_json, remove_parts, write_text

LOCK = ".lock"


@contextmanager
def run_folder(
    results: Path, label: str, params: dict[str, Any], command: str | None = None
) -> Iterator[tuple[Path, bool]]:
    """Give the folder of a run and whether it was begun before; it is locked for the block."""
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
        else:
            _remove_parts(folder)
        yield folder, resumed
        (folder / LOCK).unlink(missing_ok=True)
    finally:
        lock.close()


def finished_run(results: Path, label: str, params: dict[str, Any]) -> Path | None:
    """Return the last finished run with these params, None where there is none."""
    found = list(_with_params(results / label, params, finished=True))
    return found[-1] if found else None


def _remove_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in a run that we hold the lock of."""
    for place, below, _ in os.walk(folder):
        remove_parts(Path(place))
        # A run kept within this one is its own holder's.
        below[:] = [name for name in below if not Path(place, name, LOCK).exists()]


def _unfinished(parent: Path, params: dict[str, Any]) -> tuple[Path, IO[str], bool] | None:
    for folder in _with_params(parent, params, finished=False):
        lock = _lock(folder)
        if lock is not None:
            return folder, lock, True
    return None


def folders_within(folder: Path) -> list[Path]:
    """Return a folder and all below it, in order."""
    return sorted({folder, *(path for path in folder.rglob("*") if path.is_dir())})


def unfinished_runs(folder: Path) -> dict[Path, str]:
    """Return runs of ours at and below a folder that were begun and have told nothing yet.

    With each stands what to do. One that is at work in another process is among them.
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
                f"{place} is unfinished; unless it is still at work, give the same command again "
                "to go on" + (f": {params['command']}" if params["command"] else "")
            )
    return found


def _with_params(parent: Path, params: dict[str, Any], finished: bool) -> Iterator[Path]:
    wanted = json.loads(json.dumps(params))
    for folder in sorted(parent.glob("run_*")):
        if (folder / "summary.json").exists() is not finished:
            continue
        try:
            found = parse_json((folder / "params.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(found, dict):
            continue
        found.pop("command", None)
        if found == wanted:
            yield folder


def _new(parent: Path) -> tuple[Path, IO[str], bool]:
    for number in range(100_000):
        folder = parent / f"run_{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        lock = _lock(folder)
        if lock is not None:
            return folder, lock, False
    raise ErrataError(f"{parent} is full of runs", "name another folder: --results DIR")


def _lock(folder: Path) -> IO[str] | None:
    """Lock a folder for this process; None when another one holds it."""
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
