"""The record of a run: per case, scores before and after, as any reader of results gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.metrics.generated import Answer, summarise_answers
from errata.metrics.scores import Score, mean, named
from errata.metrics.teacher_forced import PromptScore, summarise

PUBLISHED_KINDS = {
    "rewrite": "efficacy",
    "paraphrase": "paraphrase",
    "neighborhood": "neighbourhood",
}
"""The references' names of what is asked, and ours."""
FIGURES = {
    "ngram_entropy": "fluency",
    "reference_score": "consistency",
    "essence_score": "essence_perplexity",
}
"""The references' names of what is told of generated texts, and ours."""

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


def number(value: Any) -> float:
    """Return a number as it stands in a record; raises `ValueError` for one that none can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


def is_nan(value: Any) -> bool:
    """Whether a value of a record is NaN."""
    return isinstance(value, float) and math.isnan(value)


def checked(score: PromptScore) -> PromptScore:
    """Return a score whose values are of the kind that figures are made from."""
    for each in (score.new, score.true):
        if each is not None and (
            number(each.nll) < -1
            or {type(hit) for hit in (each.likeliest, *each.correct)} != {bool}
        ):
            raise ValueError("no likelihood")
    if type(score.own) is not bool or not isinstance(score.kind, str):
        raise ValueError("no prompt")
    return score


def checked_answer(answer: Answer) -> Answer:
    """Return an answer whose fields have their types; raises `ValueError` otherwise."""
    if not isinstance(answer.kind, str) or {type(answer.begins), type(answer.holds)} - {
        bool,
        type(None),
    }:
        raise ValueError("no answer")
    return answer
