"""Tracing facts from start to end, as `errata trace` does: noise level, trace, pictures, blocks.

`trace_fact` traces one prompt, `trace_facts` the facts of a dataset; everything that is shown of
a trace is in what they return. One fact is a run of its own:

    results/trace/run_<NNN>/  params.json summary.json trace.json trace.safetensors trace.png

Both add `recommended/` when blocks are recommended: the evidence, and a settings file per method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.files import write_text
from errata.data.case import Case
from errata.data.request import EditRequest
from errata.experiments.fact_editing import Feedback
from errata.experiments.run_files import write_summary
from errata.experiments.run_folder import finished_run, run_folder
from errata.experiments.trace_run import (
    LABEL,
    TraceRun,
    ask,
    missing_pictures,
    noise_level,
    save_average_pictures,
    summary_of,
    trace_cases,
)
from errata.methods import METHODS
from errata.patches.edited_model import EditedModel
from errata.reports.figures import save_figure
from errata.reports.trace_figures import draw_trace
from errata.tracing.averages import Recommendation, nothing_lost, recommend
from errata.tracing.causal import trace_question
from errata.tracing.question import Question
from errata.tracing.settings import TraceSettings
from errata.tracing.trace import Trace

FACT = "trace.safetensors"
"""The file that holds the trace of a run of one fact."""


class TraceOutput(NamedTuple):
    """What to make of a trace, and where."""

    results: Path
    formats: Sequence[str] = ()
    """File formats of the pictures."""
    recommend: bool = False
    """Recommend blocks to edit and save them."""
    again: bool = False
    """Repeat a finished trace."""
    cache: Path | None = None
    """The folder of cached noise levels."""
    command: str | None = None
    """The command that reproduces it."""


@dataclass(frozen=True)
class Located:
    """What traces tell about where facts are stored."""

    note: str | None
    """Why nothing can be located, if corruption did not reduce the answers' probability."""
    asked: bool
    """Whether blocks were to be recommended."""
    blocks: Recommendation | None

    def as_json(self) -> dict[str, Any]:
        """Return the note and the recommendation, each where there is one to report."""
        found: dict[str, Any] = {"note": self.note} if self.note else {}
        if self.asked:
            found["recommended"] = None if self.blocks is None else self.blocks.as_json()
        return found


@dataclass(frozen=True)
class FactTrace:
    """The trace of one fact, and all that is shown of it."""

    model: str
    trace: Trace
    folder: Path
    before: bool
    """Whether an earlier call finished the run."""
    noise: str
    """The noise level and its source."""
    located: Located

    def as_json(self) -> dict[str, Any]:
        """Return what `errata trace --json` prints."""
        found = {"model": self.model, "run": str(self.folder), **self.trace.as_json()}
        return {**found, **self.located.as_json()}


@dataclass(frozen=True)
class FactTraces:
    """The traces of a dataset's facts, and all that is shown of them."""

    model: str
    dataset: str
    run: TraceRun
    noise: str
    """The noise level and its source."""
    located: Located

    def as_json(self) -> dict[str, Any]:
        """Return what `errata trace --dataset --json` prints."""
        found = {"model": self.model, "dataset": self.dataset, "run": str(self.run.folder)}
        return {**found, **summary_of(self.run), **self.located.as_json()}


def trace_fact(
    edited: EditedModel,
    request: EditRequest,
    answer: str | None,
    settings: TraceSettings,
    output: TraceOutput,
    feedback: Feedback,
    subjects: Sequence[str] = (),
) -> FactTrace:
    """Trace one fact, or read back a finished run with the same parameters.

    `answer` includes its separator; None stands for the model's most likely next token. The
    noise level is measured on `subjects`, without any on the request's own. Raises `ErrataError`
    for a prompt that is longer than the context.
    """
    question = ask(edited, request.text, request.span, answer)
    if answer is not None and not question.known:
        greedy, wanted = edited.tokenizer.decode(question.spoken).strip(), answer.strip()
        feedback.warn(
            f"the model does not answer {wanted!r} here but {greedy!r}; the trace measures the "
            f"probability of {wanted!r}"
        )
    level, noise = noise_level(edited, settings, subjects or (request.subject,), output.cache)
    params = fact_params(edited, question, settings, level)
    stored = None if output.again else finished_trace(output.results, params)
    if stored is not None:
        trace, folder = stored
    else:
        with feedback.bar("states", "") as progress:
            trace = trace_question(
                edited.model, edited.tokenizer, question, settings, level, progress=progress
            )
        folder = save_trace(trace, output.results, params, output.command)
    if missing := save_picture(trace, folder, output.formats):
        feedback.warn(
            f"no installed font has {missing}; the picture shows their codes (Noto fonts have them)"
        )
    located = _locate([trace], nothing_lost([trace]), folder, output, feedback)
    return FactTrace(edited.name, trace, folder, stored is not None, noise, located)


def trace_facts(
    edited: EditedModel,
    dataset: str,
    cases: Sequence[Case],
    subjects: Sequence[str],
    settings: TraceSettings,
    output: TraceOutput,
    feedback: Feedback,
) -> FactTraces:
    """Trace the cases of a dataset that the model knows, and average over them.

    The noise level is measured on `subjects`, those of the whole dataset, so that a part of it is
    traced as the whole is. Raises `ErrataError` if the model knows none of the facts.
    """
    level, noise = noise_level(edited, settings, subjects, output.cache)
    with feedback.bar("facts", "") as progress:
        run = trace_cases(
            edited,
            cases,
            settings,
            level,
            output.results,
            command=output.command,
            again=output.again,
            progress=progress,
        )
    run.check_known()
    save_average_pictures(run, output.formats)
    located = _locate(run.traces, run.note, run.folder, output, feedback)
    return FactTraces(edited.name, dataset, run, noise, located)


def _locate(
    traces: Sequence[Trace],
    note: str | None,
    folder: Path,
    output: TraceOutput,
    feedback: Feedback,
) -> Located:
    """Recommend and save blocks if that is asked for; warn where nothing can be located."""
    if note is not None:
        refused = "; no blocks are recommended" if output.recommend else ""
        feedback.warn(f"{note}{refused} (--level 6s corrupts more, --replace all)")
    blocks = recommend(traces) if output.recommend and note is None else None
    if blocks is not None:
        save_recommendation(folder, blocks)
    return Located(note, output.recommend, blocks)


def save_recommendation(folder: Path, blocks: Recommendation) -> None:
    """Write the evidence, and a settings file per method that `errata edit --hparams` reads."""
    place = folder / "recommended"
    write_text(place / "evidence.json", json.dumps(blocks.as_json(), indent=1) + "\n")
    for name, method in METHODS.items():
        single = method.batch_limit == 1  # such methods edit the peak alone
        layers = [blocks.peak] if single else list(blocks.blocks)
        write_text(place / f"{name}.json", json.dumps({"layers": layers}) + "\n")


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
    """Return trace and folder of one fact's finished run with these parameters, if there is one."""
    folder = finished_run(results, LABEL, params)
    path = folder / FACT if folder else None
    return (Trace.load(path), path.parent) if path and path.exists() else None


def save_trace(
    trace: Trace, results: Path, params: dict[str, Any], command: str | None = None
) -> Path:
    """Save one fact's trace as a run of its own, and return its folder."""
    with run_folder(results, LABEL, params, command) as (folder, _):
        trace.save(folder / FACT)
        text = json.dumps(trace.as_json(), indent=1, ensure_ascii=False)
        write_text(folder / "trace.json", text + "\n")
        brief = {"facts": 1, "high": trace.high, "low": float(trace.low.mean())}
        write_summary(folder, brief)
    return folder


def save_picture(trace: Trace, folder: Path, formats: Sequence[str]) -> str:
    """Draw the missing pictures of a trace; return the characters that no font has."""
    paths = missing_pictures(folder, "trace", formats)
    if not paths:
        return ""
    figure, missing = draw_trace(trace)
    for path in paths:
        save_figure(figure, path)
    return missing
