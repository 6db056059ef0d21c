"""`errata edit`: change one fact or many, keep the patch, show what changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.edit_cases import Cut, named_cases, with_probes
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
    load_model,
    named,
    settings_flags,
    show_warnings,
)
from errata.cli.show_edit import answer_rows, edit_json, shortfall, show_edit, show_plan
from errata.core.text import counted
from errata.data.case import Case
from errata.data.request import check_batch
from errata.methods import METHODS, method_named
from errata.methods.presets import merged
from errata.methods.published_hparams import read_hparams

if TYPE_CHECKING:
    from errata.experiments.edit_run import EditPlan
    from errata.methods import ClosedForm
    from errata.methods.edit import Prepared
    from errata.patches.edited_model import EditedModel
    from errata.statistics.store import Store

SHOWN = 12
"""Prompts for which answers before and after are shown."""


@settings_flags(METHODS)
def edit(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help='The fact, its subject in braces: "The {Eiffel Tower} is in".'),
    ] = None,
    target: Annotated[str | None, typer.Argument(help="What should follow.")] = None,
    *,
    subject: Annotated[
        str | None, typer.Option(help="The subject, when the prompt has {} in its place.")
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(help="A .jsonl, .json or .csv file of requests.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Cases: a dataset's name or a file.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take so many cases of the dataset.")
    ] = None,
    offset: Annotated[
        int, typer.Option(min=0, help="Leave out the first cases of the dataset.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the dataset's cases first.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out broken records, and count them.")
    ] = False,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "memit",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Requests per batch; all at once.")
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential", help="Put batches on top of each other, not each on the unedited model."
        ),
    ] = False,
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="Another wording to try afterwards; may be repeated.")
    ] = None,
    neighbour: Annotated[
        list[str] | None, typer.Option(help="A prompt that must not change; may be repeated.")
    ] = None,
    target_true: Annotated[
        str | None, typer.Option(help="What was true before; scores compare with it.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Text for the second moment (see `errata stats`).")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of it to use.")] = None,
    hparams: Annotated[
        Path | None,
        typer.Option(help="A published hyperparameter file, with the references' JSON keys."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and what it would cost.")
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
    """Edit facts in a model; the patch is kept, and what changed is shown."""
    chosen = method_named(method)
    settings = given_settings(chosen, given)
    if hparams is not None:
        read = read_hparams(hparams, chosen)
        settings = merged(read.settings, settings)
        if read.unused:
            console.warning(f"{hparams}: not used here: {', '.join(read.unused)}")
    cut = Cut(limit, offset, seed, skip_invalid)
    cases = named_cases(model, prompt, target, subject, requests, dataset, cut)
    cases = with_probes(cases, paraphrase, neighbour, target_true)
    size = batch_size or len(cases)
    for start in range(0, len(cases), size):
        show_warnings(check_batch([case.request for case in cases[start : start + size]]))
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)

    from errata.experiments.edit_run import EditPlan
    from errata.methods.edit import prepare
    from errata.statistics.store import Store

    store, plan = (
        Store(cache_folder() / "moments"),
        EditPlan(batch_size=batch_size, sequential=sequential),
    )
    if dry_run:
        _show_costs(edited, chosen, settings, cases, plan, (store, corpus, tokens), json)
        return
    with console.bar("second moment", "tokens") as progress:
        ready = prepare(
            edited,
            chosen,
            settings,
            store=store,
            corpus=corpus,
            tokens=tokens,
            progress=progress,
            say=console.progress_line,
        )
    show_warnings(ready.warnings)
    _run(edited, cases, ready, plan, results, named(model, patch, adapter), json)


def _show_costs(
    edited: EditedModel,
    method: type[ClosedForm],
    settings: dict[str, Any],
    cases: Sequence[Case],
    plan: EditPlan,
    moments: tuple[Store, str | None, int | None],
    json: bool,
) -> None:
    from errata.experiments.costs.editing import plan_edits

    store, corpus, tokens = moments
    settled, warnings, costs = plan_edits(
        edited, method, settings, cases, plan, store=store, corpus=corpus, tokens=tokens
    )
    show_warnings(warnings)
    size = min(plan.batch_size or len(cases), len(cases))
    how = "on top of each other" if plan.sequential else "each on the unedited model"
    batches = -(-len(cases) // size)
    blocks = ",".join(str(block) for block in settled.edited_blocks)
    lines = [
        f"{settled.label} at block{'s' * (',' in blocks)} {blocks}, {settled.search.steps} steps",
        f"{counted(len(cases), 'request')} in {counted(batches, 'batch', 'es')} of {size}"
        + (f", {how}" if batches > 1 else ""),
    ]
    show_plan(lines, edited, costs, json)


def _run(
    edited: EditedModel,
    cases: Sequence[Case],
    ready: Prepared,
    plan: EditPlan,
    results: Path,
    loaded: str,
    json: bool,
) -> None:
    from errata.experiments.edit_run import already_said, run_edits

    show_warnings(already_said(edited, [case.request for case in cases]))
    asked = _shown_prompts(cases)
    before = [edited.generate(text, 12) for _, text in asked]
    with console.bar("edits") as progress:
        run = run_edits(
            edited,
            cases,
            ready.method,
            ready.moments,
            plan,
            results,
            command=command_line(),
            progress=progress,
        )
    alone = len(run.patches) == 1 or plan.sequential
    after = [edited.generate(text, 12) for _, text in asked] if alone else []
    rows = answer_rows(asked, before, after, run) if alone else []
    show_warnings(shortfall(ready.method, run))
    if json:
        edit_json(edited, ready.method, run, rows, len(cases))
    else:
        show_edit(edited, ready.method, run, rows, ready.facts, loaded)


def _shown_prompts(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """The prompts whose answers are shown: all of one case, or the first of many."""
    if len(cases) > 1:
        return [("fact", case.request.text) for case in cases[:SHOWN]]
    case = cases[0]
    return [
        ("fact", case.request.text),
        *(("paraphrase", text) for text in case.paraphrases[:4]),
        *(("neighbour", text) for text in case.neighbours[:4]),
    ]
