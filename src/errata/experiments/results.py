"""Results on disk: every run in a folder and its subfolders, as a `RunRecord`.

A run of errata is a folder with `cases.jsonl`; one of kmeng01/rome, memit or AlphaEdit a folder
of `<N>_edits-case_<ID>.json` (see `published_results`). Each format has a reader in `READERS`,
which returns None for a folder that is not of its format.

Differs from kmeng01/memit: an unreadable file is skipped and reported, where the reference counts
the file before it twice; `first` checks the id of every case, where the reference stops at the
first larger one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError
from errata.core.files import parse_json
from errata.core.text import listed
from errata.experiments.case_records import (
    HALVES,
    UNREADABLE,
    CaseRecord,
    RunRecord,
)
from errata.experiments.edit_plan import EditPlan
from errata.experiments.published_results import read_published_run
from errata.experiments.run_folder import folders_within, unfinished_runs
from errata.metrics.registry import Outcomes


def read_own_run(folder: Path) -> RunRecord | None:
    """Return a run of errata; None for a folder without `cases.jsonl`."""
    if not (folder / "cases.jsonl").is_file():
        return None
    cases, unreadable = [], []
    lines = (folder / "cases.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    for at, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = parse_json(line)
                halves = {half: Outcomes.of([_half(row, half)]) for half in HALVES}
                cases.append(CaseRecord(row.get("case_id"), halves))
            except UNREADABLE:
                unreadable.append(f"cases.jsonl, line {at}")
    return RunRecord(folder, tuple(cases), tuple(unreadable), _plan_of(folder), _advice_of(folder))


def _plan_of(folder: Path) -> str | None:
    """Return the plan of a run in words, read from `summary.json`, else from `params.json`."""
    try:
        summary = parse_json((folder / "summary.json").read_text("utf-8"))
        if isinstance(found := summary.get("plan"), str):
            return found
        params = parse_json((folder / "params.json").read_text("utf-8"))
        return EditPlan(**params["plan"]).words(len(params["cases"]), len(params["parents"]))
    except (OSError, *UNREADABLE):  # an evaluation of an earlier version, or a damaged file
        return None


def _advice_of(folder: Path) -> str | None:
    """Return a run's advice from `summary.json`; None where there is none."""
    try:
        found = parse_json((folder / "summary.json").read_text("utf-8")).get("advice")
    except (OSError, *UNREADABLE):  # an interrupted run, or a damaged file
        return None
    return found if isinstance(found, str) else None


def _half(row: Mapping[str, Any], half: str) -> dict[str, Any]:
    """Return what `Outcomes.record` returned for one half of a line of `cases.jsonl`."""
    others = {
        key: value[half]
        for key, value in row.items()
        if key not in ("request", "before", "after") and isinstance(value, dict) and half in value
    }
    return {"scores": row.get(half), **others}


READERS = (read_own_run, read_published_run)
"""Readers of result formats, tried in order."""


def read_runs(folder: Path) -> list[RunRecord]:
    """Return all finished runs in a folder and its subfolders, ours and the references'.

    Raises `ErrataError` if there is none, or none with a readable case.
    """
    if not folder.is_dir():
        raise ErrataError(f"there is no folder {folder}", "give a folder that contains runs")
    found: list[RunRecord] = []
    for place in folders_within(folder):
        runs = (run for reader in READERS if (run := reader(place)) is not None)
        found += itertools.islice(runs, 1)
    if not found and (unfinished := unfinished_runs(folder)):
        raise ErrataError(f"{folder} contains no finished runs", *unfinished.values())
    if not found:
        raise ErrataError(
            f"{folder} contains no runs",
            "a run of errata has a cases.jsonl, one of the references *_edits-case_*.json",
        )
    if not any(run.cases for run in found):
        broken = [f"  {run.name}: {name}" for run in found for name in run.unreadable]
        raise ErrataError(
            f"no case in {folder} can be read:\n{listed(broken)}"
            if broken
            else f"the runs in {folder} have no cases",
            "was the copy complete? copy it again, or repeat the run",
        )
    return found
