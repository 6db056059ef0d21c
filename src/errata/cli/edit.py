"""`errata edit`: edit one fact or many, save the patch, show what changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.edit_cases import Cut, named_cases, with_probes
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import (
    NoControls,
    Normalise,
    command_line,
    given_corpus,
    given_settings,
    settings_flags,
    show_warnings,
)
from errata.cli.show_edit import show_edit, show_plan
from errata.core.files import check_results
from errata.core.places import moments_folder
from errata.data.case import Case
from errata.experiments.edit_plan import EditPlan, check_batches, plan_for
from errata.methods import METHODS, Method, method_named
from errata.methods.preset_files import read_preset
from errata.methods.presets import check_settings
from errata.methods.published_hparams import read_hparams

if TYPE_CHECKING:
    from errata.data.corpus import Corpus
    from errata.patches.edited_model import EditedModel
    from errata.statistics.store import Store


@settings_flags(METHODS)
@on_model()
def edit(
    on: OnModel,
    prompt: Annotated[
        str | None,
        typer.Argument(help='The fact, its subject in braces: "The {Eiffel Tower} is in".'),
    ] = None,
    target: Annotated[str | None, typer.Argument(help="The new answer.")] = None,
    *,
    subject: Annotated[
        str | None, typer.Option(help="The subject, if the prompt marks its place with {}.")
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            help="White space between prompt and target, or empty (default: a space, but none "
            "after an opening bracket or quote, a currency sign, or in scripts without spaces)."
        ),
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(help="A file of requests: .json, .jsonl, .csv or .tsv.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Cases: a dataset's name or a file.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of cases to take from the dataset.")
    ] = None,
    offset: Annotated[
        int, typer.Option(min=0, help="Number of cases to skip at the start of the dataset.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the dataset with this seed.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Skip invalid records and report their number.")
    ] = False,
    normalise: Normalise = False,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "memit",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests per batch (default: all in one batch; ROME edits each case of a "
            "dataset alone).",
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option("--sequential", help="Edit each batch on top of the previous ones."),
    ] = False,
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="A paraphrase of the prompt to score; may be repeated.")
    ] = None,
    neighbour: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that must not change; may be repeated."),
    ] = None,
    target_true: Annotated[
        str | None, typer.Option(help="The true answer before the edit, for scores.")
    ] = None,
    no_controls: NoControls = False,
    corpus: Annotated[
        str | None, typer.Option(help="Corpus for the second moments (see `errata stats`).")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus to use.")] = None,
    hparams: Annotated[
        Path | None,
        typer.Option(help="Published hyperparameters: the references' JSON or EasyEdit's YAML."),
    ] = None,
    preset: Annotated[
        Path | None,
        typer.Option(help="A preset file of `errata calibrate`, instead of the model's preset."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan and its estimated cost.")
    ] = False,
    given: dict[str, Any],
) -> None:
    """Edit facts in a model, save the patch, and show answers and scores before and after."""
    chosen = method_named(method)
    settings = _settings(chosen, hparams, given)
    if preset is not None:
        read_preset(preset)
    cut = Cut(limit, offset, seed, skip_invalid, normalise)
    cases = named_cases(on.model, prompt, target, subject, requests, dataset, cut, separator)
    cases = with_probes(cases, paraphrase, neighbour, target_true)
    plan = plan_for(chosen, batch_size, sequential, dataset=dataset is not None)
    notes = check_batches(cases, plan)
    for lines in notes:
        show_warnings(lines)
    text = given_corpus(corpus)
    if not dry_run:
        check_results(on.results)
    edited = on.load(to_edit=True)

    from errata.statistics.store import Store

    store = Store(moments_folder())
    if dry_run:
        _show_costs(edited, chosen, settings, cases, plan, preset, (store, text, tokens), on.json)
        return

    from errata.experiments.fact_editing import Feedback, edit_facts

    found = edit_facts(
        edited,
        cases,
        chosen,
        settings,
        plan,
        on.results,
        Feedback(console.bar, console.progress_line, console.warning),
        preset=preset,
        store=store,
        corpus=text,
        tokens=tokens,
        notes=notes,
        controls=not no_controls,
        command=command_line(),
    )
    if on.json:
        show_warnings([found.run.advice] if found.run.advice else [])
        console.as_json(found.as_json())
    else:
        show_edit(found, on.named)


def _settings(method: type[Method], hparams: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a published file, under those given as flags."""
    settings = given_settings(method, given)
    if hparams is not None:
        read = read_hparams(hparams, method)
        settings = method.merged(read.settings, settings)
        if read.unused:
            console.warning(f"{hparams}: unused keys: {', '.join(read.unused)}")
    check_settings(method, settings)
    return settings


def _show_costs(
    edited: EditedModel,
    method: type[Method],
    settings: dict[str, Any],
    cases: Sequence[Case],
    plan: EditPlan,
    preset: Path | None,
    moments: tuple[Store, Corpus | None, int | None],
    json: bool,
) -> None:
    from errata.experiments.costs.editing import plan_edits

    store, corpus, tokens = moments
    forecast = plan_edits(
        edited,
        method,
        settings,
        cases,
        plan,
        preset=preset,
        store=store,
        corpus=corpus,
        tokens=tokens,
    )
    show_warnings(forecast.warnings)
    lines = [forecast.method.summary(), plan.words(len(cases), len(edited.patches))]
    show_plan(lines, edited, forecast.costs, json)
