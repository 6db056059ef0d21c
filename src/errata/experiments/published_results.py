"""Result folders of the published implementations (kmeng01/rome, memit, AlphaEdit).

Each is read as a `RunRecord`; `published_summary` is their own table of results.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errata.core.files import parse_json
from errata.core.text import counted
from errata.experiments.case_records import (
    FIGURES,
    PUBLISHED_KINDS,
    UNREADABLE,
    CaseRecord,
    RunRecord,
)
from errata.experiments.edit_plan import EditPlan
from errata.metrics.base import is_nan, number
from errata.metrics.likelihood import Likelihood
from errata.metrics.registry import Outcomes
from errata.metrics.scores import harmonic_mean
from errata.metrics.teacher_forced import PromptScore, TeacherForced, checked
from errata.metrics.text_quality import TextQuality, Written

CASE_FILE = re.compile(r"(?:(\d+)_edits-|.*)case_(\d+)\.json")
UNSCALED = ("time", "essence_score")
"""Parts of the names of scores that are not multiplied by 100."""


def case_files(folder: Path) -> list[Path]:
    """Return a folder's case files of a published implementation, by case id."""
    found = [(int(match[2]), path) for path in folder.glob("*case_*.json")
             if (match := CASE_FILE.fullmatch(path.name))]  # fmt: skip
    return [path for _, path in sorted(found)]


def read_published_run(folder: Path) -> RunRecord | None:
    """Return a run of a published implementation; None for a folder without case files."""
    if not (files := case_files(folder)):
        return None
    cases, unreadable = [], []
    for path in files:
        try:
            cases.append(_reference_case(parse_json(path.read_text(encoding="utf-8"))))
        except (OSError, *UNREADABLE):
            unreadable.append(path.name)
    return RunRecord(folder, tuple(cases), tuple(unreadable), _plan_of(files))


def _plan_of(files: Sequence[Path]) -> str | None:
    """Return the plan of a published run in words, read off the names of its case files.

    kmeng01/rome edits each case alone and puts no number into the names; the others put the
    number of edits, but not whether batches start from the unedited model.
    """
    named = {match[1] for path in files if (match := CASE_FILE.fullmatch(path.name))}
    if named == {None}:
        return EditPlan(batch_size=1).words(len(files))
    (size, *others) = sorted(map(str, named))
    if others:
        return None
    batches = f"{counted(len(files), 'fact')} in batches of {size}"
    return f"{batches}, in sequence or each on the unedited model: the files do not say"


def _reference_case(row: Mapping[str, Any]) -> CaseRecord:
    stored = {"before": row.get("pre") or {}, "after": row.get("post") or {}}
    seconds = None if row.get("time") is None else number(row["time"])
    return CaseRecord(row["case_id"], {h: _outcomes(s) for h, s in stored.items()}, seconds)


def _outcomes(stored: Mapping[str, Any]) -> Outcomes:
    """Read one half of a case: likelihoods, and scores of generated texts."""
    figures = {
        ours: number(stored[theirs])
        for theirs, ours in FIGURES.items()
        if theirs in stored and not is_nan(stored[theirs])
    }
    written = Written((), *(figures.get(ours) for ours in FIGURES.values()))
    return Outcomes({TeacherForced.name: [_reference_scores(stored)], TextQuality.name: [written]})


def _reference_scores(stored: Mapping[str, Any]) -> list[PromptScore]:
    """Read one half: NLLs of both targets per prompt (CounterFact), or tokens alone (zsRE)."""
    scores = []
    for theirs, kind in PUBLISHED_KINDS.items():
        probs = stored.get(f"{theirs}_prompts_probs")
        correct = stored.get(f"{theirs}_prompts_correct")
        is_neighbour = kind == "neighbourhood"
        if probs is not None:
            for i, nll in enumerate(probs):
                hits: tuple[bool, ...] = (bool(correct[i]),) if correct else ()
                on_new, on_true = ((), hits) if is_neighbour else (hits, ())
                new = Likelihood(number(nll["target_new"]), all(hits), on_new)
                true = Likelihood(number(nll["target_true"]), all(hits), on_true)
                scores.append(checked(PromptScore(kind, "", new, true)))
        elif correct:
            hits = tuple(map(bool, correct))
            answer, none = Likelihood(math.nan, all(hits), hits), Likelihood(math.nan, False)
            scores.append(
                PromptScore(kind, "", none, answer, own=True)
                if is_neighbour
                else PromptScore(kind, "", answer, None)
            )
    return scores


def published_lists(run: RunRecord) -> dict[str, list[float]]:
    """Return each case's mean of every score it has, by the published implementations' names."""
    lists: dict[str, list[float]] = {}

    def put(name: str, values: Sequence[Any]) -> None:
        if len(values):
            lists.setdefault(name, []).append(float(np.mean(values)))

    for case in run.cases:
        if case.seconds is not None:
            put("time", [case.seconds])
        for ours, half in (("before", "pre"), ("after", "post")):
            scores = case.outcome(ours, TeacherForced.name) or []
            for theirs, kind in PUBLISHED_KINDS.items():
                rows = [row for row in scores if row.kind == kind]
                compared = [row for row in rows if row.success is not None]
                put(f"{half}_{theirs}_success", [row.success for row in compared])
                put(f"{half}_{theirs}_diff", [row.magnitude for row in compared])
                exact = [row.accurate for row in compared if row.accurate is not None]
                put(f"{half}_{theirs}_acc", exact or [t for row in rows for t in row.tokens or ()])
            written = case.outcome(ours, TextQuality.name)
            for theirs, name in FIGURES.items():
                value = getattr(written, name, None)
                put(f"{half}_{theirs}", [] if value is None else [value])
    return lists


def published_summary(run: RunRecord) -> dict[str, tuple[float, float]]:
    """Return means and population standard deviations over cases, in the published form.

    All but seconds and perplexities are multiplied by 100 and rounded to two decimals; the
    score is the harmonic mean of three rounded means and has no deviation (NaN).
    """
    summary = {}
    for name, values in published_lists(run).items():
        pair = float(np.mean(values)), float(np.std(values))
        if not any(word in name for word in UNSCALED):
            pair = float(np.around(pair[0] * 100, 2)), float(np.around(pair[1] * 100, 2))
        summary[name] = pair
    for half in ("pre", "post"):
        parts = [summary.get(f"{half}_{kind}_success") for kind in PUBLISHED_KINDS]
        if all(part is not None for part in parts):
            values = [part[0] for part in parts if part is not None]
            summary[f"{half}_score"] = (harmonic_mean(values), math.nan)
    return summary
