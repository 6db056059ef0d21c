"""Traces of many facts, kept one file each, and what they say on average.

    results/trace/run_<NNN>/  params.json summary.json report.md facts/<N>.npz facts/<N>.json

A fact that the model does not know has a .json with the reason in place of its trace. A run that
was stopped is found again by its params and goes on at the first fact without a file; as each is
traced alone, it ends like an uninterrupted one to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.case import Case
from errata.corruption import kept_deviation
from errata.errors import ErrataError
from errata.files import parse_json, reading_own, write_text
from errata.folders import run_folder
from errata.model import EditedModel
from errata.plots import draw_averages, draw_lines, draw_trace, save_figure
from errata.question import ask
from errata.report import Score, markdown_table
from errata.trace import Trace
from errata.trace_average import Averages, average
from errata.trace_settings import TITLES, TraceSettings
from errata.tracing import trace_question

LABEL = "trace"


@dataclass
class TraceRun:
    """What a run left."""

    folder: Path
    resumed: bool = False
    traces: list[Trace] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Which of the cases they are of."""
    left_out: list[str] = field(default_factory=list)
    """Why facts were left out, one text each."""

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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TraceRun:
    """Trace every case that the model knows; go on where the same run was stopped."""
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "patches": [patch.digest for patch in edited.patches],
        "settings": settings.model_dump(mode="json"),
        "level": level,
        "facts": [[case.id, case.request.marked, answer_of(case)] for case in cases],
    }
    with run_folder(results, LABEL, params, command) as (folder, resumed):
        run = TraceRun(folder, resumed)
        for index, case in enumerate(cases):
            found = _traced(edited, case, settings, level, folder / "facts" / f"{index:05d}")
            if isinstance(found, Trace):
                run.traces.append(found)
                run.indices.append(index)
            else:
                run.left_out.append(found)
            progress(index + 1, len(cases))
        _write_results(run, command)
    return run


def _traced(
    edited: EditedModel, case: Case, settings: TraceSettings, level: float, path: Path
) -> Trace | str:
    """Return a case's trace, or why it has none; from its file if there is one."""
    kept, aside = path.with_suffix(".npz"), path.with_suffix(".json")
    if kept.exists():
        return Trace.load(kept)
    if aside.exists():
        with reading_own(aside):
            return str(parse_json(aside.read_text(encoding="utf-8"))["left_out"])
    reason, request = None, case.request
    try:
        answer = request.separator + answer_of(case)
        question = ask(edited.model, edited.tokenizer, request.text, request.span, answer)
        if not question.known:
            said = edited.tokenizer.decode(question.spoken).strip()
            reason = f"the model says {said!r}, not {answer.strip()!r}"
    except ErrataError as error:
        reason = error.message
    if reason is not None:
        reason = f"{request.text!r}: {reason}"
        write_text(aside, json.dumps({"id": case.id, "left_out": reason}) + "\n")
        return reason
    trace = trace_question(edited.model, edited.tokenizer, question, settings, level)
    trace.save(kept)
    return trace


def keep_trace(
    edited: EditedModel,
    trace: Trace,
    results: Path,
    formats: Sequence[str] = (),
    command: str | None = None,
) -> tuple[Path, str]:
    """Keep one trace as a run of its own, with its pictures.

    Returns the run's folder, and the characters that no installed font can draw.
    """
    lacking = ""
    params = {
        "model": edited.base.model_dump(),
        "patches": [patch.digest for patch in edited.patches],
        "text": trace.text,
        "answer": trace.answer,
        "level": trace.level,
        "settings": trace.made["settings"],
    }
    with run_folder(results, LABEL, params, command) as (folder, _):
        trace.save(folder / "trace.safetensors")
        if formats:
            figure, lacking = draw_trace(trace)
            for form in formats:
                save_figure(figure, folder / f"trace.{form}")
        text = json.dumps(trace.as_json(), indent=1, ensure_ascii=False)
        write_text(folder / "trace.json", text + "\n")
        brief = {"facts": 1, "high": trace.high, "low": float(trace.low.mean())}
        write_text(folder / "summary.json", json.dumps(brief) + "\n")
    return folder, lacking


def keep_averages(run: TraceRun, formats: Sequence[str]) -> None:
    """Keep pictures of a run's averages: heat maps and lines."""
    if not formats:
        return
    averages, window = run.averages, run.traces[0].window
    for name, draw in (("heat", draw_averages), ("lines", draw_lines)):
        figure = draw(averages, window)
        for form in formats:
            save_figure(figure, run.folder / f"{name}.{form}")


def summary_of(run: TraceRun) -> dict[str, Any]:
    """Return averages, and what was left out and why."""
    found = run.averages.as_json() if run.traces else {"facts": 0}
    return {**found, "left_out": len(run.left_out), "reasons": run.left_out}


def _write_results(run: TraceRun, command: str | None) -> None:
    lines = [f"# trace, {run.folder.name}"]
    if run.traces:
        lines += average_tables(run.averages)
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
