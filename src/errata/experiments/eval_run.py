"""Evaluation runs: score a model on cases, without and with its patches.

    results/eval/run_<NNN>/  params.json cases.jsonl summary.json report.md

Every metric of `METRICS` that the settings include is scored, whichever method edited the model.
Results are grouped by protocol: teacher-forced scores, generated answers, generated texts.
Cases are scored in groups; finished groups are stored in the run's `parts/`, so an interrupted
run resumes and ends like an uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress
from errata.data.case import Case, cases_digest
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import run_folder
from errata.metrics.base import EvalSettings, Metric
from errata.metrics.registry import Outcomes, prepared_metrics, score_metrics
from errata.metrics.scores import before_after_json
from errata.metrics.text_quality import missing_extras
from errata.patches.edited_model import EditedModel
from errata.reports.tables import before_after_rows, markdown_table, score_rows

CASES_AT_ONCE = 64
"""Cases that are scored together; a group is the unit of resume."""


@dataclass
class Evaluation:
    """The outcomes of a model with its patches and, if it has any, without them."""

    cases: Sequence[Case]
    after: Outcomes
    before: Outcomes | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the scores by name, those of the model without patches under `before`."""
        before = None if self.before is None else self.before.summary
        return before_after_json(before, self.after.summary)

    def tables(self) -> dict[str, tuple[tuple[str, ...], list[list[str]]]]:
        """Return columns and rows of each table, by title."""
        found: dict[str, tuple[tuple[str, ...], list[list[str]]]] = {}
        before = None if self.before is None else self.before.tables
        for title, scores in self.after.tables.items():
            if before is None:
                found[title] = ("figure", "value"), score_rows(scores)
            else:
                rows = before_after_rows(before.get(title, {}), scores)
                found[title] = ("figure", "before", "after"), rows
        return found


def evaluate_model(
    edited: EditedModel,
    cases: Sequence[Case],
    asking: EvalSettings | None = None,
    progress: Progress = no_progress,
    parts: Path | None = None,
) -> Evaluation:
    """Score a model on cases; if it has patches, also without them.

    With a folder `parts`, finished groups of cases are stored there and read back from there.
    """
    metrics = prepared_metrics(cases, asking or EvalSettings())
    run = _Scoring(edited, cases, metrics, progress, parts)
    before = None
    if edited.patches:
        with edited.without_patches():
            before = run.score("before")
    return Evaluation(cases, run.score("after"), before)


@dataclass
class _Scoring:
    """The state of one evaluation."""

    edited: EditedModel
    cases: Sequence[Case]
    metrics: Sequence[Metric[Any]]
    progress: Progress
    parts: Path | None
    done: int = field(default=0, init=False)

    def score(self, half: str) -> Outcomes:
        """Score the model in its present state on all cases, group by group."""
        found = Outcomes({metric.name: [] for metric in self.metrics})
        total = len(self.cases) * (2 if self.edited.patches else 1)
        for start in range(0, len(self.cases), CASES_AT_ONCE):
            group = self.cases[start : start + CASES_AT_ONCE]
            path = self.parts and self.parts / f"{half}_{start:06d}.json"
            if path is not None and path.exists():
                with reading_own(path):
                    records = parse_json(path.read_text("utf-8"))
                    found.extend(Outcomes.of(records, self.metrics))
            else:
                scored = score_metrics(self.metrics, self.edited, group, start)
                if path is not None:
                    records = [scored.record(i) for i in range(len(group))]
                    write_text(path, json.dumps(records, ensure_ascii=False))
                found.extend(scored)
            self.done += len(group)
            self.progress(self.done, total)
        return found


def run_evaluation(
    edited: EditedModel,
    cases: Sequence[Case],
    asking: EvalSettings,
    results: Path,
    source: dict[str, Any],
    command: str | None = None,
    progress: Progress = no_progress,
) -> tuple[Evaluation, Path]:
    """Evaluate as a run of its own under `results/eval`; return the evaluation and the folder.

    `source` describes the cases: the dataset and the selection. An interrupted run with the same
    params resumes.
    """
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "patches": [patch.digest for patch in edited.patches],
        "asking": asking.model_dump(),
        "dataset": source,
        "without": missing_extras() if asking.generate else [],
        "cases": [case.id for case in cases],
        "cases_digest": cases_digest(cases),
    }
    with run_folder(results, "eval", params, command) as (folder, _):
        evaluation = evaluate_model(edited, cases, asking, progress, folder / "parts")
        _write(folder, evaluation, edited, command)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return evaluation, folder


def _write(folder: Path, evaluation: Evaluation, edited: EditedModel, command: str | None) -> None:
    sections = []
    for title, (columns, rows) in evaluation.tables().items():
        sections += [f"## {title}", markdown_table(columns, rows)]
    sections += [f"Cases: {len(evaluation.cases)}. Patches: {len(edited.patches)}."]
    write_results(
        folder,
        f"eval, {folder.name}: {edited.name}",
        sections,
        evaluation.as_json(),
        records=[_record(evaluation, index, case) for index, case in enumerate(evaluation.cases)],
        command=command,
    )


def _record(evaluation: Evaluation, index: int, case: Case) -> dict[str, Any]:
    """Return one line of `cases.jsonl`: teacher-forced scores under `before` and `after`.

    Other metrics have keys of their own with both halves below.
    """
    found: dict[str, Any] = {
        "case_id": case.id,
        "request": case.request.model_dump(exclude_defaults=True),
        "target_true": case.target_true,
    }
    others: dict[str, Any] = {}
    for half, outcomes in (("before", evaluation.before), ("after", evaluation.after)):
        if outcomes is not None:
            record = outcomes.record(index)
            found[half] = record.pop("scores")
            for key, value in record.items():
                others.setdefault(key, {})[half] = value
    return {**found, **others}
