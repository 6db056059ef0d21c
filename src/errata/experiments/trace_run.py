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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress
from errata.data.case import Case
from errata.experiments.parts import Format, Parts
from errata.experiments.run_folder import finished_run, run_folder
from errata.metrics.scores import Score
from errata.patches.edited_model import EditedModel
from errata.reports.figures import save_figure
from errata.reports.tables import markdown_table
from errata.reports.trace_figures import draw_averages, draw_lines, draw_trace
from errata.tracing.averages import Averages, average, nothing_lost
from errata.tracing.causal import trace_question
from errata.tracing.corruption import kept_deviation
from errata.tracing.question import Question, ask_model
from errata.tracing.settings import TITLES, TraceSettings
from errata.tracing.trace import Trace

LABEL = "trace"
FACT = "trace.safetensors"
"""The file of a run of one fact."""


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

    @property
    def averages(self) -> Averages:
        """The traces' averages; raises `ErrataError` when there are none."""
        if not self.traces:
            reasons = self.left_out[:3]
            raise ErrataError(
                f"none of {len(self.left_out)} facts could be traced, for example:\n  "
                + "\n  ".join(reasons),
                "choose facts that the model knows",
            )
        return average(self.traces)


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
    """Return a fact's stored trace, or why it was left out; None for a fact not reached yet."""
    kept, aside = path.with_suffix(".npz"), path.with_suffix(".json")
    if kept.exists():
        return Trace.load(kept)
    if aside.exists():
        with reading_own(aside):
            found = parse_json(aside.read_text(encoding="utf-8"))
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
        question = ask_model(edited.model, edited.tokenizer, request.text, request.span, answer)
        if not question.known:
            said = edited.tokenizer.decode(question.spoken).strip()
            reason = f"the model says {said!r}, not {answer.strip()!r}"
            return LeftOut(case.id, f"{request.text!r}: {reason}")
    except ErrataError as error:
        return LeftOut(case.id, f"{request.text!r}: {error.message}")
    return trace_question(edited.model, edited.tokenizer, question, settings, level)


def fact_params(
    edited: EditedModel, question: Question, settings: TraceSettings, level: float
) -> dict[str, Any]:
    """Return the parameters that identify one fact's run."""
    return {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "patches": [patch.digest for patch in edited.patches],
        "text": question.text,
        "subject": list(question.subject),
        "answer": edited.tokenizer.decode(question.targets).strip(),
        "targets": list(question.targets),
        "level": level,
        "settings": settings.model_dump(mode="json"),
    }


def finished_trace(results: Path, params: dict[str, Any]) -> tuple[Trace, Path] | None:
    """Return one fact's trace and folder where a run with these params is finished."""
    folder = finished_run(results, LABEL, params)
    path = folder / FACT if folder else None
    return (Trace.load(path), path.parent) if path and path.exists() else None


def keep_trace(
    trace: Trace, results: Path, params: dict[str, Any], command: str | None = None
) -> Path:
    """Store one fact's trace as a run of its own, and return its folder."""
    with run_folder(results, LABEL, params, command) as (folder, _):
        trace.save(folder / FACT)
        text = json.dumps(trace.as_json(), indent=1, ensure_ascii=False)
        write_text(folder / "trace.json", text + "\n")
        brief = {"facts": 1, "high": trace.high, "low": float(trace.low.mean())}
        write_text(folder / "summary.json", json.dumps(brief) + "\n")
    return folder


def keep_picture(trace: Trace, folder: Path, formats: Sequence[str]) -> str:
    """Draw the missing pictures of a trace; return the characters that no font has."""
    paths = [path for form in formats if not (path := folder / f"trace.{form}").exists()]
    figure, lacking = draw_trace(trace) if paths else (None, "")
    for path in paths:
        assert figure is not None
        save_figure(figure, path)
    return lacking


def keep_averages(run: TraceRun, formats: Sequence[str]) -> None:
    """Draw the missing pictures of a run's averages: heat maps and lines."""
    for name, draw in (("heat", draw_averages), ("lines", draw_lines)):
        paths = [path for form in formats if not (path := run.folder / f"{name}.{form}").exists()]
        figure = draw(run.averages, run.traces[0].window) if paths else None
        for path in paths:
            assert figure is not None
            save_figure(figure, path)


def summary_of(run: TraceRun) -> dict[str, Any]:
    """Return averages, facts left out with reasons, and a note where nothing can be located."""
    found = run.averages.as_json() if run.traces else {"facts": 0}
    note = nothing_lost(run.traces) if run.traces else None
    return {
        **found,
        **({"note": note} if note else {}),
        "left_out": len(run.left_out),
        "reasons": run.left_out,
    }


def _write_results(run: TraceRun, command: str | None) -> None:
    lines = [f"# trace, {run.folder.name}"]
    if run.traces:
        lines += average_tables(run.averages)
        lines += [f"{note}."] if (note := nothing_lost(run.traces)) else []
    lines.append(f"Facts: {len(run.traces)}. Left out: {len(run.left_out)}.")
    lines += ["\n".join(f"- {reason}" for reason in run.left_out)] if run.left_out else []
    lines += [f"Made by `{command}`."] if command else []
    write_text(run.folder / "report.md", "\n\n".join(lines) + "\n")
    summary = json.dumps(summary_of(run), indent=1, ensure_ascii=False)
    write_text(run.folder / "summary.json", summary + "\n")


def average_tables(averages: Averages) -> list[str]:
    """Return Markdown: effects in percent by role and block, and their intervals at the peak."""
    lines = [f"The answers' probability: {averages.high}; corrupted: {averages.low}."]
    for kind, roles in averages.effects.items():
        columns = (TITLES[kind], *(str(block) for block in range(averages.blocks)), "largest")
        rows = [
            [role, *(str(round(100 * score.value)) for score in row), str(largest(row))]
            for role, row in roles.items()
        ]
        lines.append(markdown_table(columns, rows))
    return lines


def largest(row: Sequence[Score]) -> Score:
    """Return the score with the largest value."""
    return max(row, key=lambda score: score.value)
