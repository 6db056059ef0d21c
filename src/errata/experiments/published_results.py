"""Result folders of the published implementations (kmeng01/rome, memit, AlphaEdit).

Each is read as a `RunRecord`; `published_summary` is the table in the references' own form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errata.core.files import parse_json
from errata.experiments.case_records import (
    FIGURES,
    PUBLISHED_KINDS,
    UNREADABLE,
    CaseRecord,
    Half,
    RunRecord,
    checked,
    is_nan,
    number,
)
from errata.metrics.likelihood import Likelihood
from errata.metrics.scores import harmonic_mean
from errata.metrics.teacher_forced import PromptScore

CASE_FILE = re.compile(r".*case_(\d+)\.json")
UNSCALED = ("time", "essence_score")
"""What the references do not multiply by 100."""


def case_files(folder: Path) -> list[Path]:
    """Return the references' case files of a folder, by case id."""
    found = [(int(match[1]), path) for path in folder.glob("*case_*.json")
             if (match := CASE_FILE.fullmatch(path.name))]  # fmt: skip
    return [path for _, path in sorted(found)]


def read_published_run(folder: Path) -> RunRecord | None:
    """Return a run of a reference repository; None where a folder has no case files."""
    if not (files := case_files(folder)):
        return None
    cases, unreadable = [], []
    for path in files:
        try:
            cases.append(_reference_case(parse_json(path.read_text(encoding="utf-8"))))
        except (OSError, *UNREADABLE):
            unreadable.append(path.name)
    return RunRecord(folder, tuple(cases), tuple(unreadable))


def _reference_case(row: Mapping[str, Any]) -> CaseRecord:
    halves = {"before": row.get("pre") or {}, "after": row.get("post") or {}}
    figures = {
        half: {
            ours: number(told[theirs])
            for theirs, ours in FIGURES.items()
            if theirs in told and not is_nan(told[theirs])
        }
        for half, told in halves.items()
    }
    seconds = None if row.get("time") is None else number(row["time"])
    before, after = map(_reference_scores, halves.values())
    return CaseRecord(row["case_id"], before, after, figures, seconds=seconds)


def _reference_scores(told: Mapping[str, Any]) -> Half:
    """Read one half: NLLs of both targets per prompt (CounterFact), or tokens alone (zsRE)."""
    scores = []
    for theirs, kind in PUBLISHED_KINDS.items():
        probs, correct = told.get(f"{theirs}_prompts_probs"), told.get(f"{theirs}_prompts_correct")
        aside = kind == "neighbourhood"
        if probs is not None:
            for i, nll in enumerate(probs):
                hits: tuple[bool, ...] = (bool(correct[i]),) if correct else ()
                new = Likelihood(number(nll["target_new"]), all(hits), () if aside else hits)
                true = Likelihood(number(nll["target_true"]), all(hits), hits if aside else ())
                scores.append(checked(PromptScore(kind, "", new, true)))
        elif correct:
            hits = tuple(map(bool, correct))
            answer, none = Likelihood(math.nan, all(hits), hits), Likelihood(math.nan, False)
            scores.append(
                PromptScore(kind, "", none, answer, own=True)
                if aside
                else PromptScore(kind, "", answer, None)
            )
    return scores


def published_lists(run: RunRecord) -> dict[str, list[float]]:
    """Return, under the references' names, each case's mean of every figure it has."""
    lists: dict[str, list[float]] = {}

    def put(name: str, values: Sequence[Any]) -> None:
        if len(values):
            lists.setdefault(name, []).append(float(np.mean(values)))

    for case in run.cases:
        if case.seconds is not None:
            put("time", [case.seconds])
        for half, scores in (("pre", case.before), ("post", case.after)):
            for theirs, kind in PUBLISHED_KINDS.items():
                rows = [row for row in scores if row.kind == kind]
                compared = [row for row in rows if row.success is not None]
                put(f"{half}_{theirs}_success", [row.success for row in compared])
                put(f"{half}_{theirs}_diff", [row.magnitude for row in compared])
                exact = [row.accurate for row in compared if row.accurate is not None]
                put(f"{half}_{theirs}_acc", exact or [t for row in rows for t in row.tokens or ()])
            told = case.figures.get("before" if half == "pre" else "after", {})
            for theirs, ours in FIGURES.items():
                put(f"{half}_{theirs}", [told[ours]] if ours in told else [])
    return lists


def published_summary(run: RunRecord) -> dict[str, tuple[float, float]]:
    """Return means and population standard deviations over cases, as the references print them.

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
