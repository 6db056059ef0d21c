"""What runs left on disk, ours and those of the reference repositories, read alike.

A run of ours is a folder with `cases.jsonl`; one of kmeng01/rome, memit or AlphaEdit a folder
of `<N>_edits-case_<ID>.json`. Either becomes a `RunRecord` with the scores of every case, so
one summary serves both. `published_summary` is the table in the form of the references.

Differs from kmeng01/memit: a file that cannot be read is left out and named, where the
reference counts the file before it twice; `first` asks every case for its id, where the
reference stops at the first larger one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from errata.core.errors import ErrataError
from errata.core.files import parse_json
from errata.core.text import listed
from errata.experiments.run_folder import folders_within, unfinished_runs
from errata.metrics.likelihood import Likelihood
from errata.metrics.scores import Score, harmonic_mean, mean, named
from errata.metrics.teacher_forced import PromptScore, score_of, summarise
from errata.models.generation import Answer, summarise_answers

CASE_FILE = re.compile(r".*case_(\d+)\.json")
KINDS = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighbourhood"}
"""The references' names of what is asked, and ours."""
FIGURES = {
    "ngram_entropy": "fluency",
    "reference_score": "consistency",
    "essence_score": "essence_perplexity",
}
"""The references' names of what is told of generated texts, and ours."""
UNSCALED = ("time", "essence_score")
"""What the references do not multiply by 100."""

LARGEST = 1e100
"""No figure is larger, not a broken model's perplexity; beyond, sums of squares are infinite."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, AssertionError)
"""What reading a record raises that is not one."""

Half = list[PromptScore]


@dataclass(frozen=True)
class CaseRecord:
    """What a run says about one case."""

    id: int | str | None
    before: Half
    after: Half
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What is told of generated texts, by `before` and `after`, then by our names."""
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    """What the model wrote after each prompt, by `before` and `after`."""
    seconds: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """What one run left."""

    folder: Path
    cases: tuple[CaseRecord, ...]
    unreadable: tuple[str, ...] = ()
    """Files that were left out."""

    @property
    def name(self) -> str:
        """The run's folder, with the method's before it where its path has one."""
        return "/".join(part for part in self.folder.parts[-2:] if part != "/") or "."

    def first(self, count: int) -> RunRecord:
        """Return the run with only the cases whose id is below `count`."""
        kept = tuple(case for case in self.cases if isinstance(case.id, int) and case.id < count)
        return RunRecord(self.folder, kept, self.unreadable)

    def summary(self, half: str) -> dict[str, Score]:
        """Return every figure of one half, `before` or `after`, by our names."""
        summary = summarise([getattr(case, half) for case in self.cases])
        summary |= summarise_answers([case.answers.get(half, ()) for case in self.cases])
        for name in FIGURES.values():
            told = [case.figures.get(half, {}) for case in self.cases]
            score = mean([figures[name] for figures in told if name in figures])
            if score is not None:
                summary[name] = named(name, score)
        return summary


def read_runs(folder: Path) -> list[RunRecord]:
    """Return all runs at and below a folder, ours and the references', unfinished ones left out.

    Raises `ErrataError` when there is none, or none of which a case can be read.
    """
    if not folder.is_dir():
        raise ErrataError(f"there is no folder {folder}", "name a folder that holds runs")
    found = []
    for place in folders_within(folder):
        if (place / "cases.jsonl").is_file():
            found.append(_own_run(place))
        elif files := case_files(place):
            found.append(_reference_run(place, files))
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


def read_reference_runs(folder: Path) -> list[RunRecord]:
    """Return the runs of a reference repository below a folder."""
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    return [_reference_run(place, files) for place in places if (files := case_files(place))]


def case_files(folder: Path) -> list[Path]:
    """Return the references' case files of a folder, by case id."""
    found = [(int(match[1]), path) for path in folder.glob("*case_*.json")
             if (match := CASE_FILE.fullmatch(path.name))]  # fmt: skip
    return [path for _, path in sorted(found)]


def _own_run(folder: Path) -> RunRecord:
    cases, unreadable = [], []
    lines = (folder / "cases.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = parse_json(line)
                before, after = (
                    [_checked(score_of(prompt)) for prompt in row.get(half) or ()]
                    for half in ("before", "after")
                )
                answers = {
                    half: [_checked_answer(Answer(**answer)) for answer in kept]
                    for half, kept in (row.get("answers") or {}).items()
                }
                told = {
                    half: {name: _number(value) for name, value in figures.items()}
                    for half, figures in (row.get("figures") or {}).items()
                }
                cases.append(CaseRecord(row.get("case_id"), before, after, told, answers))
            except UNREADABLE:
                unreadable.append(f"cases.jsonl, line {number}")
    return RunRecord(folder, tuple(cases), tuple(unreadable))


def _number(value: Any) -> float:
    """Return a number as it stands in a record; raises `ValueError` for one that none can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _checked(score: PromptScore) -> PromptScore:
    """Return a score whose values are of the kind that figures are made from."""
    for each in (score.new, score.true):
        if each is not None and (
            _number(each.nll) < -1
            or {type(hit) for hit in (each.likeliest, *each.correct)} != {bool}
        ):
            raise ValueError("no likelihood")
    if type(score.own) is not bool or not isinstance(score.kind, str):
        raise ValueError("no prompt")
    return score


def _checked_answer(answer: Answer) -> Answer:
    if not isinstance(answer.kind, str) or {type(answer.begins), type(answer.holds)} - {
        bool,
        type(None),
    }:
        raise ValueError("no answer")
    return answer


def _reference_run(folder: Path, files: Sequence[Path]) -> RunRecord:
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
            ours: _number(told[theirs])
            for theirs, ours in FIGURES.items()
            if theirs in told and not _is_nan(told[theirs])
        }
        for half, told in halves.items()
    }
    seconds = None if row.get("time") is None else _number(row["time"])
    before, after = map(_reference_scores, halves.values())
    return CaseRecord(row["case_id"], before, after, figures, seconds=seconds)


def _reference_scores(told: Mapping[str, Any]) -> Half:
    """Read one half: NLLs of both targets per prompt (CounterFact), or tokens alone (zsRE)."""
    scores = []
    for theirs, kind in KINDS.items():
        probs, correct = told.get(f"{theirs}_prompts_probs"), told.get(f"{theirs}_prompts_correct")
        aside = kind == "neighbourhood"
        if probs is not None:
            for i, nll in enumerate(probs):
                hits: tuple[bool, ...] = (bool(correct[i]),) if correct else ()
                new = Likelihood(_number(nll["target_new"]), all(hits), () if aside else hits)
                true = Likelihood(_number(nll["target_true"]), all(hits), hits if aside else ())
                scores.append(_checked(PromptScore(kind, "", new, true)))
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
            for theirs, kind in KINDS.items():
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
        parts = [summary.get(f"{half}_{kind}_success") for kind in KINDS]
        if all(part is not None for part in parts):
            values = [part[0] for part in parts if part is not None]
            summary[f"{half}_score"] = (harmonic_mean(values), math.nan)
    return summary
