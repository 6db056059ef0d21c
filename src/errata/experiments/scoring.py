"""Scoring cases part by part, for every run that scores cases.

Each part holds the records of up to `CASES_AT_ONCE` cases, with the outcomes of every metric. An
interrupted run reads finished parts back and ends like an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errata.core.progress import Progress, no_progress
from errata.data.case import Case
from errata.experiments.parts import Parts, chunks, json_list
from errata.metrics.base import Metric
from errata.metrics.registry import Outcomes, score_metrics
from errata.metrics.teacher_forced import TeacherForced
from errata.patches.edited_model import EditedModel

CASES_AT_ONCE = 64
"""Cases that are scored together; such a group is the unit of resume."""


def score_parts(
    metrics: Sequence[Metric[Any]], folder: Path | None = None
) -> Parts[list[Outcomes]]:
    """Return the parts in which scores are stored, if there is a folder: one list per group.

    Each element holds the outcomes of one case. Edit runs of earlier versions stored only the
    teacher-forced scores of a case, as a list; these are read as well.
    """

    def read(record: Any) -> Outcomes:
        found = {TeacherForced.name: record} if isinstance(record, list) else record
        return Outcomes.of([found], metrics)

    return Parts(folder, json_list(lambda outcomes: outcomes.record(0), read))


def _with_fact(
    metrics: Sequence[Metric[Any]], edited: EditedModel, case: Case, index: int
) -> Outcomes:
    """Return the outcomes of a case whose fact stands before each of its prompts."""
    with edited.told(f"{case.fact}\n"):
        return score_metrics(metrics, edited, [case], index)


def score_in_parts(
    edited: EditedModel,
    cases: Sequence[Case],
    metrics: Sequence[Metric[Any]],
    parts: Parts[list[Outcomes]],
    name: Callable[[int], str],
    *,
    first: int = 0,
    progress: Progress = no_progress,
    in_prompt: bool = False,
) -> Outcomes:
    """Return the outcomes of all cases, scored and stored group by group.

    `name` gives the name of a part from the index of its first case in `cases`; `first` is the
    index of `cases[0]` among all cases of the run, from which metrics derive seeds.
    With `in_prompt`, the fact is put before the prompts of each case, in words.
    """

    def scored(start: int, group: Sequence[Case]) -> list[Outcomes]:
        if in_prompt:
            return [
                _with_fact(metrics, edited, case, first + index)
                for index, case in enumerate(group, start)
            ]
        return score_metrics(metrics, edited, group, first + start).apart()

    found = Outcomes({metric.name: [] for metric in metrics})
    for each in chunks(parts, cases, CASES_AT_ONCE, name, scored, progress):
        found.extend(each)
    return found
