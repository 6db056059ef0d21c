"""Results on disk: every run at and below a folder, whoever wrote it, as a `RunRecord`.

A run of errata is a folder with `cases.jsonl`; one of kmeng01/rome, memit or AlphaEdit a folder
of `<N>_edits-case_<ID>.json` (see `published_results`). Each format has a reader in `READERS`,
which returns None for a folder that is not of its format.

Differs from kmeng01/memit: a file that cannot be read is left out and named, where the
reference counts the file before it twice; `first` asks every case for its id, where the
reference stops at the first larger one.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from errata.core.errors import ErrataError
from errata.core.files import parse_json
from errata.core.text import listed
from errata.experiments.case_records import (
    UNREADABLE,
    CaseRecord,
    RunRecord,
    checked,
    checked_answer,
    number,
)
from errata.experiments.published_results import read_published_run
from errata.experiments.run_folder import folders_within, unfinished_runs
from errata.metrics.generated import Answer
from errata.metrics.teacher_forced import score_of


def read_own_run(folder: Path) -> RunRecord | None:
    """Return a run of errata; None where a folder has no `cases.jsonl`."""
    if not (folder / "cases.jsonl").is_file():
        return None
    cases, unreadable = [], []
    lines = (folder / "cases.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    for at, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = parse_json(line)
                before, after = (
                    [checked(score_of(prompt)) for prompt in row.get(half) or ()]
                    for half in ("before", "after")
                )
                answers = {
                    half: [checked_answer(Answer(**answer)) for answer in kept]
                    for half, kept in (row.get("answers") or {}).items()
                }
                told = {
                    half: {name: number(value) for name, value in figures.items()}
                    for half, figures in (row.get("figures") or {}).items()
                }
                cases.append(CaseRecord(row.get("case_id"), before, after, told, answers))
            except UNREADABLE:
                unreadable.append(f"cases.jsonl, line {at}")
    return RunRecord(folder, tuple(cases), tuple(unreadable))


READERS = (read_own_run, read_published_run)
"""Formats of a run's results, tried in order."""


def read_runs(folder: Path) -> list[RunRecord]:
    """Return all runs at and below a folder, ours and the references', unfinished ones left out.

    Raises `ErrataError` when there is none, or none of which a case can be read.
    """
    if not folder.is_dir():
        raise ErrataError(f"there is no folder {folder}", "name a folder that holds runs")
    found: list[RunRecord] = []
    for place in folders_within(folder):
        runs = (run for reader in READERS if (run := reader(place)) is not None)
        found += itertools.islice(runs, 1)
    if not found and (unfinished := unfinished_runs(folder)):
        raise ErrataError(f"{folder} holds no finished runs", *unfinished.values())
    if not found:
        raise ErrataError(
            f"{folder} holds no runs",
            "a run of errata has a cases.jsonl, one of the references *_edits-case_*.json",
        )
    if not any(run.cases for run in found):
        broken = [f"  {run.name}: {name}" for run in found for name in run.unreadable]
        raise ErrataError(
            f"no case in {folder} can be read:\n{listed(broken)}"
            if broken
            else f"the runs in {folder} hold no cases",
            "was it copied whole? copy it again, or make the run again",
        )
    return found
