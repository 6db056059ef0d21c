"""Evaluating a model on cases, without and with its patches, and keeping what was found.

    results/eval/run_<NNN>/  params.json cases.jsonl summary.json report.md

What was edited by whom makes no difference: anything that loads as a model is asked the same
prompts. The three ways of asking stay apart under names of their own: teacher-forced scores
(`evaluate`), what the model writes by itself (`generate`), and its longer texts (`fluency`).
Cases are asked a few at a time; what is done waits in the run's `parts/`, and a run that was
stopped goes on from there and ends like an uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress
from errata.core.settings import Settings
from errata.data.case import Case, cases_digest
from errata.experiments.run_folder import run_folder
from errata.metrics.generated import Answer, answer_cases, summarise_answers
from errata.metrics.scores import Score
from errata.metrics.teacher_forced import PromptScore, record_of, score_cases, score_of, summarise
from errata.metrics.text_quality import (
    FIGURES,
    TfIdf,
    Written,
    missing_extras,
    summarise_written,
    word_weights,
    write_cases,
)
from errata.patches.edited_model import EditedModel
from errata.reports.tables import before_after_rows, markdown_table

CASES_AT_ONCE = 64
"""Cases that are asked together; what they said is the unit of resume."""


class EvalSettings(Settings):
    """How a model is asked."""

    generate: bool = False
    """Let the model write as well: greedy answers to all prompts, and texts about the subjects."""
    max_new_tokens: int = 32
    """Longest answer, in tokens."""
    text_tokens: int = 100
    """Length of the texts, in tokens with their prompt."""
    seed: int = 0
    """Seed of the texts, which are sampled."""


@dataclass
class Half:
    """What one model said, by case: the model without its patches, or with them."""

    scores: list[list[PromptScore]] = field(default_factory=list)
    answers: list[list[Answer]] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, dict[str, Score]]:
        """Figures by name, apart by the way of asking."""
        return {
            "teacher-forced": summarise(self.scores),
            "written by itself": summarise_answers(self.answers),
            "texts": summarise_written(self.written),
        }

    @property
    def summary(self) -> dict[str, Score]:
        """All figures by name."""
        return {name: score for part in self.parts.values() for name, score in part.items()}

    def record(self, index: int) -> dict[str, Any]:
        """Return what is kept of one case."""
        found: dict[str, Any] = {"scores": [record_of(score) for score in self.scores[index]]}
        if self.answers:
            found["answers"] = [answer._asdict() for answer in self.answers[index]]
        if self.written:
            told = self.written[index]
            found["texts"] = list(told.texts)
            found["figures"] = {
                name: value for name in FIGURES if (value := getattr(told, name)) is not None
            }
        return found

    def take(self, record: Mapping[str, Any]) -> None:
        """Add a case from what `record` kept of it."""
        self.scores.append([score_of(score) for score in record["scores"]])
        if "answers" in record:
            self.answers.append([Answer(**answer) for answer in record["answers"]])
        if "texts" in record:
            told = {name: record["figures"].get(name) for name in FIGURES}
            self.written.append(Written(tuple(record["texts"]), **told))


@dataclass
class Evaluation:
    """What was found: with the patches, and without them if there are any."""

    cases: Sequence[Case]
    after: Half
    before: Half | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name, those of the model without patches under `before`."""
        found: dict[str, Any] = _plain(self.after.summary)
        return found if self.before is None else {**found, "before": _plain(self.before.summary)}

    def tables(self) -> dict[str, tuple[tuple[str, ...], list[list[str]]]]:
        """Return columns and rows for each way of asking that was taken."""
        found: dict[str, tuple[tuple[str, ...], list[list[str]]]] = {}
        for title, scores in self.after.parts.items():
            if scores and self.before is None:
                found[title] = ("figure", "value"), [[n, str(s)] for n, s in scores.items()]
            elif scores and self.before is not None:
                rows = before_after_rows(self.before.parts[title], scores)
                found[title] = ("figure", "before", "after"), rows
        return found


def _plain(summary: dict[str, Score]) -> dict[str, Any]:
    return {name: score.model_dump() for name, score in summary.items()}


def evaluate_model(
    edited: EditedModel,
    cases: Sequence[Case],
    asking: EvalSettings | None = None,
    progress: Progress = no_progress,
    parts: Path | None = None,
) -> Evaluation:
    """Ask a model about cases; with patches on it, also as it is without them.

    With a folder `parts` what is done is kept there, and taken from there when it is found.
    """
    asker = _Asker(edited, cases, asking or EvalSettings(), progress, parts)
    before = None
    if edited.patches:
        with edited.without_patches():
            before = asker.ask("before")
    return Evaluation(cases, asker.ask("after"), before)


@dataclass
class _Asker:
    """One evaluation at work."""

    edited: EditedModel
    cases: Sequence[Case]
    asking: EvalSettings
    progress: Progress
    parts: Path | None
    done: int = 0

    def ask(self, name: str) -> Half:
        """Ask the model, as it stands, about all cases."""
        half = Half()
        texts = self.asking.generate and not missing_extras()
        words = word_weights(self.cases) if texts else None
        total = len(self.cases) * (2 if self.edited.patches else 1)
        for start in range(0, len(self.cases), CASES_AT_ONCE):
            path = self.parts and self.parts / f"{name}_{start:06d}.json"
            some = self.cases[start : start + CASES_AT_ONCE]
            if path is not None and path.exists():
                with reading_own(path):
                    for record in parse_json(path.read_text("utf-8")):
                        half.take(record)
            else:
                self._ask_some(half, some, start, texts, words)
                if path is not None:
                    kept = [half.record(start + i) for i in range(len(some))]
                    write_text(path, json.dumps(kept, ensure_ascii=False))
            self.done += len(some)
            self.progress(self.done, total)
        return half

    def _ask_some(
        self, half: Half, cases: Sequence[Case], start: int, texts: bool, words: TfIdf | None
    ) -> None:
        model, tokenizer, asking = self.edited.model, self.edited.tokenizer, self.asking
        half.scores += score_cases(model, tokenizer, cases)
        if asking.generate:
            half.answers += answer_cases(model, tokenizer, cases, asking.max_new_tokens)
        if texts:
            half.written += write_cases(
                model,
                tokenizer,
                cases,
                words=words,
                seed=asking.seed + start,
                tokens=asking.text_tokens,
            )


def run_evaluation(
    edited: EditedModel,
    cases: Sequence[Case],
    asking: EvalSettings,
    results: Path,
    source: dict[str, Any],
    command: str | None = None,
    progress: Progress = no_progress,
) -> tuple[Evaluation, Path]:
    """Evaluate as a run of its own under `results/eval`; return what was found, and its folder.

    `source` says which cases they are: the dataset and how it was cut. A run that was stopped
    is found again by its params and goes on.
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
        _write_results(folder, evaluation, edited, command)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return evaluation, folder


def _write_results(
    folder: Path, evaluation: Evaluation, edited: EditedModel, command: str | None
) -> None:
    lines = [
        json.dumps(_record(evaluation, index, case), ensure_ascii=False)
        for index, case in enumerate(evaluation.cases)
    ]
    write_text(folder / "cases.jsonl", "\n".join(lines) + "\n")
    report = [f"# eval, {folder.name}: {edited.name}"]
    for title, (columns, rows) in evaluation.tables().items():
        report += [f"## {title}", markdown_table(columns, rows)]
    report += [f"Cases: {len(evaluation.cases)}. Patches: {len(edited.patches)}."]
    report += [f"Made by `{command}`."] if command else []
    write_text(folder / "report.md", "\n\n".join(report) + "\n")
    write_text(folder / "summary.json", json.dumps(evaluation.as_json(), indent=1) + "\n")


def _record(evaluation: Evaluation, index: int, case: Case) -> dict[str, Any]:
    """Return one line of `cases.jsonl`: that of an edit's run, with what the model wrote."""
    found: dict[str, Any] = {
        "case_id": case.id,
        "request": case.request.model_dump(exclude_defaults=True),
        "target_true": case.target_true,
    }
    wrote: dict[str, Any] = {}
    for name, half in (("before", evaluation.before), ("after", evaluation.after)):
        if half is not None:
            told = half.record(index)
            found[name] = told.pop("scores")
            for what, value in told.items():
                wrote.setdefault(what, {})[name] = value
    return {**found, **wrote}
