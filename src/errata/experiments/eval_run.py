"""Evaluation runs: score a model on cases, without and with its patches.

    results/eval/run_<NNN>/  params.json cases.jsonl summary.json report.md

Every metric of `METRICS` that the settings include is scored, whichever method edited the model.
Results are grouped by protocol: teacher-forced scores, generated answers, generated texts.
Cases are scored in groups; finished groups are stored in the run's `parts/`, so an interrupted
run resumes and ends like an uninterrupted one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.progress import Progress, no_progress, shifted
from errata.data.case import Case, cases_digest
from errata.experiments.case_records import case_line
from errata.experiments.edit_plan import stack_words
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import run_folder
from errata.experiments.scoring import score_in_parts, score_parts
from errata.metrics.base import EvalSettings
from errata.metrics.registry import Outcomes, prepared_metrics
from errata.metrics.scores import before_after_json
from errata.metrics.text_quality import missing_extras
from errata.patches.edited_model import EditedModel
from errata.reports.tables import markdown_table, score_table


@dataclass
class Evaluation:
    """The outcomes of a model with its patches and, if it has any, of the controls."""

    cases: Sequence[Case]
    after: Outcomes
    before: Outcomes | None = None
    """Those of the unedited model."""
    in_prompt: Outcomes | None = None
    """Those of the unedited model with each case's fact in the prompt."""
    plan: str = ""
    """How the model was edited, in words."""

    def as_json(self) -> dict[str, Any]:
        """Return the scores by name, those of the controls under `before` and `in_prompt`."""
        before, in_prompt = (
            None if half is None else half.summary for half in (self.before, self.in_prompt)
        )
        return before_after_json(before, self.after.summary, in_prompt)

    def tables(self) -> dict[str, tuple[tuple[str, ...], list[list[str]]]]:
        """Return columns and rows of each table, by title."""
        before, in_prompt = (half.tables if half else {} for half in (self.before, self.in_prompt))
        return {
            title: score_table(before.get(title), scores, in_prompt.get(title))
            for title, scores in self.after.tables.items()
        }

    def write(
        self,
        folder: Path,
        heading: str,
        closing: Sequence[str],
        command: str | None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write records, report and summary.

        `closing` are the report's last paragraphs, `more` further keys of the summary.
        """
        sections = [f"{self.plan[:1].upper()}{self.plan[1:]}."]
        for title, (columns, rows) in self.tables().items():
            sections += [f"## {title}", markdown_table(columns, rows)]
        write_results(
            folder,
            heading,
            [*sections, *closing],
            {**self.as_json(), "plan": self.plan, **(more or {})},
            records=[
                case_line(case, index, self.before, self.after, self.in_prompt)
                for index, case in enumerate(self.cases)
            ],
            command=command,
        )


def evaluate_model(
    edited: EditedModel,
    cases: Sequence[Case],
    asking: EvalSettings | None = None,
    progress: Progress = no_progress,
    parts: Path | None = None,
) -> Evaluation:
    """Score a model on cases; if it has patches, also without them, and with facts in the prompt.

    With a folder `parts`, finished groups of cases are stored there and read back from there.
    """
    asking = asking or EvalSettings()
    metrics = prepared_metrics(cases, asking)
    plan = stack_words([len(patch.provenance.requests) for patch in edited.patches])
    stored, controls = score_parts(metrics, parts), list[str]()
    if edited.patches:
        controls = ["before", "in_prompt"] if asking.controls else ["before"]

    def score(half: str, done: int) -> Outcomes:
        at = shifted(progress, done * len(cases), (len(controls) + 1) * len(cases))
        return score_in_parts(
            edited,
            cases,
            metrics,
            stored,
            lambda start: f"{half}_{start:06d}",
            progress=at,
            in_prompt=half == "in_prompt",
        )

    with edited.asked(asking.form(edited)):
        with edited.without_patches():
            found = {half: score(half, number) for number, half in enumerate(controls)}
        after = score("after", len(controls))
    return Evaluation(cases, after, found.get("before"), found.get("in_prompt"), plan)


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
        evaluation.write(
            folder,
            f"eval, {folder.name}: {edited.name}",
            [f"Cases: {len(cases)}. Patches: {len(edited.patches)}."],
            command,
        )
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return evaluation, folder
