"""`errata trace`: where a model keeps a fact, by restoring one state of a corrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from errata.cli import console
from errata.cli.options import (
    Adapter,
    AdapterKind,
    AllowBase,
    Device,
    Dtype,
    Json,
    Model,
    Patches,
    Results,
    cache_folder,
    command_line,
    given_settings,
    load_dataset,
    load_model,
    named,
    settings_flags,
)
from errata.cli.show_trace import (
    keep_recommendation,
    picture_formats,
    show_averages,
    show_trace,
)
from errata.core.errors import ErrataError
from errata.data.request import EditRequest
from errata.tracing.settings import TraceSettings

if TYPE_CHECKING:
    from errata.data.datasets import Loaded
    from errata.patches.edited_model import EditedModel
    from errata.tracing.averages import Recommendation
    from errata.tracing.question import Question
    from errata.tracing.trace import Trace

OWN_SUBJECTS = {"demo": "demo-known"}
"""Models that bring a dataset whose subjects the noise of a single prompt is measured on."""


class _How(NamedTuple):
    """What to do with what is traced."""

    results: Path
    formats: tuple[str, ...]
    recommend: bool
    again: bool
    json: bool
    loaded: str
    """How a command names the model with what is on it."""


@settings_flags({"trace": TraceSettings}, defaults=True)
def trace(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help='The fact, its subject in braces: "The {Eiffel Tower} is in".'),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Argument(help="What should follow; the model's likeliest token when not given."),
    ] = None,
    *,
    subject: Annotated[
        str | None, typer.Option(help="The subject, when the prompt has {} in its place.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Trace the facts of a dataset, and average.", metavar="NAME|FILE"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many facts.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the first facts.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the facts first.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out broken records, and count them.")
    ] = False,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Name the blocks to edit, and keep them.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(help="Pictures to keep: png, pdf, svg or none; png.", metavar="LIST"),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Do a trace that is finished once more.")
    ] = False,
    patch: Patches = None,
    results: Results = Path("results"),
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
    given: dict[str, Any],
) -> None:
    """Trace where facts are: each state that, restored, brings a corrupted answer back.

    One that was stopped goes on where it was, one that is finished is shown again.
    """
    settings = TraceSettings.of(given_settings(TraceSettings, given))
    formats = picture_formats(plot)
    if (prompt is None) == (dataset is None):
        raise ErrataError(
            "say what to trace, in one way",
            'one fact: errata trace MODEL "The {Eiffel Tower} is in the city of"',
            "many, and their average: --dataset known --limit 200",
        )
    if recommend and "mlp" not in settings.kinds:
        raise ErrataError("blocks are recommended by the trace of MLPs", "let --kinds include mlp")
    name = dataset or ("" if prompt is None else OWN_SUBJECTS.get(model, ""))
    loaded = load_dataset(name, limit, offset, seed, skip_invalid) if name else None
    subjects = loaded.subjects if loaded else ()  # of all, so that a part is traced as the whole
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    how = _How(results, formats, recommend, again, json, named(model, patch, adapter))
    if prompt is not None:
        request = EditRequest.parse(prompt, answer or "?", subject)
        question = _asked(edited, request, answer)
        subjects = subjects or (request.subject,)
        _trace_one(edited, question, settings, subjects, how)
    elif loaded is not None:
        _trace_many(edited, name, loaded, settings, how)


def _asked(edited: EditedModel, request: EditRequest, answer: str | None) -> Question:
    from errata.tracing.question import ask_model

    follows = None if answer is None else request.answer
    question = ask_model(edited.model, edited.tokenizer, request.text, request.span, follows)
    if not question.known:
        said = edited.tokenizer.decode(question.spoken).strip()
        console.warning(
            f"the model does not say {answer!r} here but {said!r}; what is traced is how likely "
            f"it finds {answer!r}"
        )
    return question


def _trace_one(
    edited: EditedModel,
    question: Question,
    settings: TraceSettings,
    subjects: Sequence[str],
    how: _How,
) -> None:
    from errata.experiments.trace_run import (
        fact_params,
        finished_trace,
        keep_picture,
        keep_trace,
        noise_level,
    )
    from errata.tracing.causal import trace_question

    level, noise = noise_level(edited, settings, subjects, cache_folder() / "noise")
    params = fact_params(edited, question, settings, level)
    before = None if how.again else finished_trace(how.results, params)
    if before is not None:
        found, folder = before
    else:
        with console.bar("states") as progress:
            found = trace_question(
                edited.model, edited.tokenizer, question, settings, level, progress=progress
            )
        folder = keep_trace(found, how.results, params, command_line())
    if lacking := keep_picture(found, folder, how.formats):
        console.warning(
            f"no installed font has {lacking}; the picture shows their codes (Noto fonts have them)"
        )
    blocks, told = _recommended([found], folder, how)
    if how.json:
        made = {"model": edited.name, "run": str(folder), **found.as_json()}
        console.as_json({**made, **told})
    else:
        said = noise, OWN_SUBJECTS.get(edited.name, "known")
        show_trace(how.loaded, found, said, folder, blocks, before is not None, "note" in told)


def _trace_many(
    edited: EditedModel,
    name: str,
    loaded: Loaded,
    settings: TraceSettings,
    how: _How,
) -> None:
    from errata.experiments.trace_run import keep_averages, noise_level, summary_of, trace_cases

    level, noise = noise_level(edited, settings, loaded.subjects, cache_folder() / "noise")
    with console.bar("facts") as progress:
        run = trace_cases(
            edited,
            loaded.cases,
            settings,
            level,
            how.results,
            command=command_line(),
            again=how.again,
            progress=progress,
        )
    run.averages  # noqa: B018 (raises where no fact is known)
    keep_averages(run, how.formats)
    blocks, told = _recommended(run.traces, run.folder, how)
    if how.json:
        made = {"model": edited.name, "dataset": name, "run": str(run.folder), **summary_of(run)}
        console.as_json({**made, **told})
    else:
        show_averages(how.loaded, name, run, noise, blocks)


def _recommended(
    traces: Sequence[Trace], folder: Path, how: _How
) -> tuple[Recommendation | None, dict[str, Any]]:
    """Return the blocks to edit, if asked for, kept; and what `--json` tells of them.

    Where nothing can be located, that is told, and no blocks are.
    """
    from errata.tracing.averages import nothing_lost, recommend

    note = nothing_lost(traces)
    if note is not None:
        refused = "; no blocks are recommended" if how.recommend else ""
        console.warning(f"{note}{refused} (--level 6s corrupts more, --replace all)")
    blocks = recommend(traces) if how.recommend else None
    if blocks is not None:
        keep_recommendation(folder, blocks)
    told: dict[str, Any] = {"note": note} if note else {}
    if how.recommend:
        told["recommended"] = None if blocks is None else blocks.as_json()
    return blocks, told
