"""Stored runs: per case the outcomes before and after, as every reader of results returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.data.case import Case
from errata.metrics.registry import Outcomes
from errata.metrics.scores import Score
from errata.metrics.teacher_forced import TeacherForced

PUBLISHED_KINDS = {
    "rewrite": "efficacy",
    "paraphrase": "paraphrase",
    "neighborhood": "neighbourhood",
}
"""Kinds of prompt: the published implementations' names, and ours."""
FIGURES = {
    "ngram_entropy": "fluency",
    "reference_score": "consistency",
    "essence_score": "essence_perplexity",
}
"""Scores of generated texts: the published implementations' names, and ours."""

HALVES = ("before", "after", "in_prompt")
"""What a case is scored on: the unedited model, the edited one, and the unedited one with the fact
in the prompt."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, AssertionError)
"""Errors that reading a malformed record raises."""


@dataclass(frozen=True)
class CaseRecord:
    """The stored outcomes of one case."""

    id: int | str | None
    halves: Mapping[str, Outcomes]
    """The outcomes of this case alone, by the names in `HALVES`."""
    seconds: float | None = None
    """Duration of the edit, where the run recorded it."""

    def outcome(self, half: str, metric: str) -> Any:
        """Return the outcome of a metric in one of `HALVES`, None if there is none."""
        found = self.halves[half].by_metric.get(metric) if half in self.halves else None
        return found[0] if found else None


@dataclass(frozen=True)
class RunRecord:
    """The stored results of one run."""

    folder: Path
    cases: tuple[CaseRecord, ...]
    unreadable: tuple[str, ...] = ()
    """Files and lines that could not be read."""
    plan: str | None = None
    """How the model was edited, in words, where the run says so."""
    advice: str | None = None
    """What the edits did too little or too much, where the run says so."""

    @property
    def name(self) -> str:
        """The last two parts of the folder's path, as in MEMIT/run_000."""
        return "/".join(part for part in self.folder.parts[-2:] if part != "/") or "."

    def first(self, count: int) -> RunRecord:
        """Return the run with only the cases whose id is below `count`."""
        chosen = tuple(case for case in self.cases if isinstance(case.id, int) and case.id < count)
        return replace(self, cases=chosen)

    def summary(self, half: str) -> dict[str, Score]:
        """Return every score of one of `HALVES` by name."""
        found = Outcomes()
        for case in self.cases:
            if half in case.halves:
                found.extend(case.halves[half])
        return found.summary


def case_line(
    case: Case,
    index: int,
    before: Outcomes | None,
    after: Outcomes | None,
    in_prompt: Outcomes | None = None,
) -> dict[str, Any]:
    """Return one line of `cases.jsonl`: teacher-forced scores under each of `HALVES`.

    Other metrics have keys of their own with the halves below. `index` is the case's position
    among the outcomes.
    """
    found: dict[str, Any] = {
        "case_id": case.id,
        "request": case.request.model_dump(exclude_defaults=True),
        "target_true": case.target_true,
    }
    others: dict[str, Any] = {}
    for half, outcomes in zip(HALVES, (before, after, in_prompt), strict=True):
        if outcomes is not None:
            record = outcomes.record(index)
            found[half] = record.pop(TeacherForced.name)
            for key, value in record.items():
                others.setdefault(key, {})[half] = value
    return {**found, **others}
