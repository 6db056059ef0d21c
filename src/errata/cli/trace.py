"""`errata trace`: causal tracing of one fact or of a dataset's facts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import command_line, given_settings, load_dataset, settings_flags
from errata.cli.show_trace import picture_formats, show_averages, show_trace
from errata.core.errors import ErrataError
from errata.core.files import check_results
from errata.core.places import cache_folder
from errata.data.request import EditRequest
from errata.tracing.settings import TraceSettings

OWN_SUBJECTS = {"demo": "demo-known"}
"""Models that come with a dataset on whose subjects the noise for a single prompt is measured."""


@settings_flags({"trace": TraceSettings}, defaults=True)
@on_model()
def trace(
    on: OnModel,
    prompt: Annotated[
        str | None,
        typer.Argument(help='The fact, its subject in braces: "The {Eiffel Tower} is in".'),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Argument(help="The answer to trace (default: the model's most likely next token)."),
    ] = None,
    *,
    subject: Annotated[
        str | None, typer.Option(help="The subject, if the prompt marks its place with {}.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Trace the facts of a dataset and average over them.", metavar="NAME|FILE"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of facts to take from the dataset.")
    ] = None,
    offset: Annotated[
        int, typer.Option(min=0, help="Number of facts to skip at the start of the dataset.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the dataset with this seed.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Skip invalid records and report their number.")
    ] = False,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Recommend blocks to edit, and save them.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            help="Formats of the figures: png (default), pdf, svg; or none.", metavar="LIST"
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Repeat a finished trace.")] = False,
    given: dict[str, Any],
) -> None:
    """Causal tracing: restore one hidden state at a time, measure how much of the answer returns.

    The subject's embeddings are corrupted with noise. States that recover the answer's probability
    when they are restored show where the model stores the fact. Interrupted runs resume; finished
    ones are shown again.

    Example: errata trace demo "The home town of {Anouk Almory} is"
    """
    settings = TraceSettings.of(given_settings(TraceSettings, given))
    formats = picture_formats(plot)
    if (prompt is None) == (dataset is None):
        raise ErrataError(
            "name either a fact or a dataset to trace",
            'one fact: errata trace MODEL "The {Eiffel Tower} is in the city of"',
            "the average over many: --dataset known --limit 200",
        )
    if recommend and "mlp" not in settings.kinds:
        raise ErrataError("blocks are recommended by the trace of MLPs", "let --kinds include mlp")
    request = None
    if prompt is not None:
        request = EditRequest.parse(prompt, "?" if answer is None else answer, subject)
    check_results(on.results)
    name = dataset or OWN_SUBJECTS.get(on.model, "")
    loaded = load_dataset(name, limit, offset, seed, skip_invalid) if name else None
    edited = on.load()

    from errata.experiments.fact_editing import Feedback
    from errata.experiments.fact_tracing import TraceOutput, trace_fact, trace_facts

    feedback = Feedback(console.bar, console.progress_line, console.warning)
    cache = cache_folder() / "noise"
    output = TraceOutput(on.results, formats, recommend, again, cache, command_line())
    # The noise level is that of the whole dataset, so that a part of it is traced as the whole is.
    subjects = loaded.subjects if loaded else ()
    if request is not None:
        follows = None if answer is None else request.answer
        one = trace_fact(edited, request, follows, settings, output, feedback, subjects)
        if on.json:
            console.as_json(one.as_json())
        else:
            show_trace(one, on.named, OWN_SUBJECTS.get(edited.name, "known"))
        return
    assert loaded is not None
    many = trace_facts(edited, name, loaded.cases, subjects, settings, output, feedback)
    if on.json:
        console.as_json(many.as_json())
    else:
        show_averages(many, on.named)
