"""Causal traces of many facts, one file each, and their averages.

    results/trace/run_<NNN>/  params.json summary.json report.md facts/<N>.npz facts/<N>.json

A fact that the model does not know has a .json with the reason instead of a trace. Each fact is
traced alone, so a run that resumes at the first missing file ends bit-identical to an
uninterrupted one. A finished run with the same parameters is read back, not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress
from errata.data.case import Case
from errata.experiments.parts import Format, Parts
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import finished_run, run_folder
from errata.patches.edited_model import EditedModel
from errata.reports.figures import save_figure
from errata.reports.tables import markdown_table
from errata.reports.trace_figures import draw_averages, draw_lines
from errata.tracing.averages import Averages, average, nothing_lost
from errata.tracing.causal import trace_question
from errata.tracing.corruption import kept_deviation
from errata.tracing.question import Question, ask_model
from errata.tracing.settings import TITLES, TraceSettings
from errata.tracing.trace import Trace

LABEL = "trace"


class LeftOut(NamedTuple):
    """A fact that cannot be traced."""

    id: int | str | None
    reason: str


@dataclass
class TraceRun:
    """The traces of a run and the facts it left out."""

    folder: Path
    resumed: bool = False
    before: bool = False
    """Whether an earlier call finished the run."""
    traces: list[Trace] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """The index of each trace's case."""
    left_out: list[str] = field(default_factory=list)
    """The reason for each fact left out."""

    def add(self, index: int, found: Trace | LeftOut | None) -> None:
        """Add the outcome of a case: its trace, or why it was left out."""
        if isinstance(found, Trace):
            self.traces.append(found)
            self.indices.append(index)
        elif found is not None:
            self.left_out.append(found.reason)

    def check_known(self) -> None:
        """Raise `ErrataError` if no fact could be traced."""
        if not self.traces:
            reasons = "\n  ".join(self.left_out[:3])
            raise ErrataError(
                f"none of {len(self.left_out)} facts could be traced, for example:\n  {reasons}",
                "choose facts that the model knows",
            )

    @cached_property
    def averages(self) -> Averages:
        """The averages of the finished run; raises `ErrataError` when there are no traces."""
        self.check_known()
        return average(self.traces)

    @cached_property
    def note(self) -> str | None:
        """Why nothing can be located, if corruption did not reduce the answers' probability."""
        return nothing_lost(self.traces) if self.traces else None


def noise_level(
    edited: EditedModel,
    settings: TraceSettings,
    subjects: Sequence[str],
    cache: Path | None = None,
) -> tuple[float, str]:
    """Return the noise level (a standard deviation), and a description of its origin."""
    if settings.deviations is None:
        return float(settings.level), f"noise: {settings.noise}, {float(settings.level):.3g}"
    deviation = kept_deviation(edited.model, edited.tokenizer, subjects, cache)
    level = settings.deviations * deviation
    of = f"of {len(subjects)} subjects'" if len(subjects) > 1 else "of this subject's"
    return level, (
        f"noise: {settings.noise}, {level:.3g} = {settings.deviations:g} x {deviation:.3g}, the "
        f"standard deviation {of} embeddings"
    )


def ask(
    edited: EditedModel, prompt: str, span: tuple[int, int], answer: str | None = None
) -> Question:
    """Tokenise a prompt as the model's prompt patches render it, and query the model.

    `span` is the subject's character range in `prompt`; the question's positions are those in
    the rendered prompt. See `ask_model`.
    """
    text, place = edited.rendered(prompt), edited.rendered_span(prompt, span)
    follows = None if answer is None else edited.following(prompt, answer)
    return ask_model(edited.model, edited.tokenizer, text, place, follows)


def answer_of(case: Case) -> str:
    """Return the answer that the unedited model should give to a case."""
    return case.target_true or case.request.target


def trace_cases(
    edited: EditedModel,
    cases: Sequence[Case],
    settings: TraceSettings,
    level: float,
    results: Path,
    *,
    command: str | None = None,
    again: bool = False,
    progress: Progress = no_progress,
) -> TraceRun:
    """Trace every case that the model knows, resuming an unfinished run with the same parameters.

    A finished run is read back, or repeated with `again`.
    """
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "patches": [patch.digest for patch in edited.patches],
        "settings": settings.model_dump(mode="json"),
        "level": level,
        "facts": [[case.id, case.request.marked, answer_of(case)] for case in cases],
    }
    done = None if again else finished_run(results, LABEL, params)
    named = {f"{index:05d}": case for index, case in enumerate(cases)}
    stored = [Parts(done / "facts", FACTS).stored(name) for name in named] if done else []
    if done is not None and None not in stored:
        run = TraceRun(done, before=True)
        for index, found in enumerate(stored):
            run.add(index, found)
        return run
    with run_folder(results, LABEL, params, command) as (folder, resumed):
        run, facts = TraceRun(folder, resumed), Parts(folder / "facts", FACTS)
        trace = partial(_traced, edited, settings, level)
        for index, one in enumerate(facts.each(named, trace, progress)):
            run.add(index, one)
        _write_results(run, command)
    return run


def _read_fact(path: Path) -> Trace | LeftOut | None:
    """Return a fact's stored trace, or why it was left out; None if neither is stored."""
    trace, left_out = path.with_suffix(".npz"), path.with_suffix(".json")
    if trace.exists():
        return Trace.load(trace)
    if left_out.exists():
        with reading_own(left_out):
            found = parse_json(left_out.read_text(encoding="utf-8"))
            return LeftOut(found.get("id"), str(found["left_out"]))
    return None


def _write_fact(path: Path, found: Trace | LeftOut) -> None:
    if isinstance(found, Trace):
        found.save(path.with_suffix(".npz"))
    else:
        write_text(
            path.with_suffix(".json"), json.dumps({"id": found.id, "left_out": found.reason}) + "\n"
        )


FACTS = Format[Trace | LeftOut](_read_fact, _write_fact)
"""How a fact is stored: its trace as .npz, or why it was left out as .json."""


def _traced(
    edited: EditedModel, settings: TraceSettings, level: float, case: Case
) -> Trace | LeftOut:
    """Trace a case; return the trace, or why the case is left out."""
    request = case.request
    try:
        answer = request.separator + answer_of(case)
        question = ask(edited, request.text, request.span, answer)
        if not question.known:
            greedy = edited.tokenizer.decode(question.spoken).strip()
            reason = f"the model says {greedy!r}, not {answer.strip()!r}"
            return LeftOut(case.id, f"{request.text!r}: {reason}")
    except ErrataError as error:
        return LeftOut(case.id, f"{request.text!r}: {error.message}")
    return trace_question(edited.model, edited.tokenizer, question, settings, level)


def missing_pictures(folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Return the paths of a picture in these formats that do not exist yet."""
    return [path for form in formats if not (path := folder / f"{name}.{form}").exists()]


def save_average_pictures(run: TraceRun, formats: Sequence[str]) -> None:
    """Draw the missing pictures of a run's averages: heat maps and lines."""
    for name, draw in (("heat", draw_averages), ("lines", draw_lines)):
        if paths := missing_pictures(run.folder, name, formats):
            figure = draw(run.averages, run.traces[0].window)
            for path in paths:
                save_figure(figure, path)


def summary_of(run: TraceRun) -> dict[str, Any]:
    """Return averages, facts left out with reasons, and a note if nothing can be located."""
    found = run.averages.as_json() if run.traces else {"facts": 0}
    return {
        **found,
        **({"note": run.note} if run.note else {}),
        "left_out": len(run.left_out),
        "reasons": run.left_out,
    }


def _write_results(run: TraceRun, command: str | None) -> None:
    lines = []
    if run.traces:
        lines += average_tables(run.averages)
        lines += [f"{run.note}."] if run.note else []
    lines.append(f"Facts: {len(run.traces)}. Left out: {len(run.left_out)}.")
    lines += ["\n".join(f"- {reason}" for reason in run.left_out)] if run.left_out else []
    heading = f"trace, {run.folder.name}"
    write_results(run.folder, heading, lines, summary_of(run), command=command)


def average_tables(averages: Averages) -> list[str]:
    """Return Markdown: effects in percent by role and block, and their intervals at the peak."""
    lines = [f"Probability of the answer: {averages.high} clean, {averages.low} corrupted."]
    for kind, roles in averages.effects.items():
        columns = (TITLES[kind], *(str(block) for block in range(averages.blocks)), "largest")
        rows = [
            [
                role,
                *(str(round(100 * score.value)) for score in row),
                str(max(row, key=lambda score: score.value)),
            ]
            for role, row in roles.items()
        ]
        lines.append(markdown_table(columns, rows))
    return lines
