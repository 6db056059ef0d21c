"""Traces of many facts, kept one file each, and what they say on average.

    results/trace/run_<NNN>/  params.json summary.json report.md facts/<N>.npz facts/<N>.json

A fact that the model does not know has a .json with the reason in place of its trace. A run that
was stopped is found again by its params and goes on at the first fact without a file; as each is
traced alone, it ends like an uninterrupted one to the bit. One that is finished is found, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress
from errata.data.case import Case
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


@dataclass
class TraceRun:
    """What a run left."""

    folder: Path
    resumed: bool = False
    before: bool = False
    """Whether an earlier call finished it."""
    traces: list[Trace] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Which of the cases they are of."""
    left_out: list[str] = field(default_factory=list)
    """Why facts were left out, one text each."""

    def add(self, index: int, found: Trace | str | None) -> None:
        """Take what was found of a case: its trace, or why it was left out."""
        if isinstance(found, Trace):
            self.traces.append(found)
            self.indices.append(index)
        elif found is not None:
            self.left_out.append(found)

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
    """Return what noise is multiplied by, and where that comes from, in words."""
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
    """Return what a case's model is believed to say: what is true before any edit."""
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
    """Trace every case that the model knows; go on where the same run was stopped.

    A run that is finished is given back as it is; with `again` it is done once more.
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
    kept = [_kept(_place(done, index)) for index in range(len(cases))] if done else []
    if done is not None and None not in kept:
        run = TraceRun(done, before=True)
        for index, found in enumerate(kept):
            run.add(index, found)
        return run
    with run_folder(results, LABEL, params, command) as (folder, resumed):
        run = TraceRun(folder, resumed)
        for index, case in enumerate(cases):
            path = _place(folder, index)
            run.add(index, _kept(path) or _traced(edited, case, settings, level, path))
            progress(index + 1, len(cases))
        _write_results(run, command)
    return run


def _place(folder: Path, index: int) -> Path:
    """Return where a fact's trace is kept, without the ending."""
    return folder / "facts" / f"{index:05d}"


def _kept(path: Path) -> Trace | str | None:
    """Return the trace that is kept, or why there is none; None for a fact not reached yet."""
    kept, aside = path.with_suffix(".npz"), path.with_suffix(".json")
    if kept.exists():
        return Trace.load(kept)
    if aside.exists():
        with reading_own(aside):
            return str(parse_json(aside.read_text(encoding="utf-8"))["left_out"])
    return None


def _traced(
    edited: EditedModel, case: Case, settings: TraceSettings, level: float, path: Path
) -> Trace | str:
    """Trace a case and keep that, or why it cannot be traced."""
    reason, request = None, case.request
    try:
        answer = request.separator + answer_of(case)
        question = ask_model(edited.model, edited.tokenizer, request.text, request.span, answer)
        if not question.known:
            said = edited.tokenizer.decode(question.spoken).strip()
            reason = f"the model says {said!r}, not {answer.strip()!r}"
    except ErrataError as error:
        reason = error.message
    if reason is not None:
        reason = f"{request.text!r}: {reason}"
        write_text(
            path.with_suffix(".json"), json.dumps({"id": case.id, "left_out": reason}) + "\n"
        )
        return reason
    trace = trace_question(edited.model, edited.tokenizer, question, settings, level)
    trace.save(path.with_suffix(".npz"))
    return trace


def fact_params(
    edited: EditedModel, question: Question, settings: TraceSettings, level: float
) -> dict[str, Any]:
    """Return what one fact's run is found again by."""
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
    """Keep one fact's trace as a run of its own, and return its folder."""
    with run_folder(results, LABEL, params, command) as (folder, _):
        trace.save(folder / FACT)
        text = json.dumps(trace.as_json(), indent=1, ensure_ascii=False)
        write_text(folder / "trace.json", text + "\n")
        brief = {"facts": 1, "high": trace.high, "low": float(trace.low.mean())}
        write_text(folder / "summary.json", json.dumps(brief) + "\n")
    return folder


def keep_picture(trace: Trace, folder: Path, formats: Sequence[str]) -> str:
    """Keep those pictures of a trace that are not there; return the characters no font has."""
    paths = [path for form in formats if not (path := folder / f"trace.{form}").exists()]
    figure, lacking = draw_trace(trace) if paths else (None, "")
    for path in paths:
        assert figure is not None
        save_figure(figure, path)
    return lacking


def keep_averages(run: TraceRun, formats: Sequence[str]) -> None:
    """Keep those pictures of a run's averages that are not there: heat maps and lines."""
    for name, draw in (("heat", draw_averages), ("lines", draw_lines)):
        paths = [path for form in formats if not (path := run.folder / f"{name}.{form}").exists()]
        figure = draw(run.averages, run.traces[0].window) if paths else None
        for path in paths:
            assert figure is not None
            save_figure(figure, path)


def summary_of(run: TraceRun) -> dict[str, Any]:
    """Return averages, what was left out and why, and a note where they say nothing."""
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
