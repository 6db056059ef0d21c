"""`errata sweep-blocks`: edit at every block and compare the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import (
    command_line,
    given_corpus,
    given_settings,
    load_dataset,
    parse_blocks,
    settings_flags,
    show_warnings,
)
from errata.cli.show_trace import picture_formats
from errata.core.errors import ErrataError
from errata.core.files import check_results
from errata.core.places import cache_folder, moments_folder
from errata.methods import METHODS, method_named
from errata.methods.presets import check_settings
from errata.tracing.settings import TraceSettings

if TYPE_CHECKING:
    from errata.data.case import Case
    from errata.data.corpus import Corpus
    from errata.data.datasets import Loaded
    from errata.experiments.block_sweep import Sweep
    from errata.experiments.sweep_vs_trace import SideBySide
    from errata.methods import Method
    from errata.patches.edited_model import EditedModel
    from errata.statistics.second_moment import SecondMoment


@settings_flags(METHODS)
@on_model()
def sweep_blocks(
    on: OnModel,
    *,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Cases: a dataset's name or a file (default for `demo`: demo).",
            metavar="NAME|FILE",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Number of cases to take from the dataset.")
    ] = 50,
    offset: Annotated[
        int, typer.Option(min=0, help="Number of cases to skip at the start of the dataset.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the dataset with this seed.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Skip invalid records and report their number.")
    ] = False,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "rome",
    trace: Annotated[
        bool, typer.Option("--trace", help="Also trace the same facts, and compare.")
    ] = False,
    corpus: Annotated[
        str | None, typer.Option(help="Corpus for the second moments (see `errata stats`).")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus to use.")] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            help="Formats of the figures: png (default), pdf, svg; or none.", metavar="LIST"
        ),
    ] = None,
    given: dict[str, Any],
) -> None:
    """Edit each fact alone at each block (default: all blocks), and score every edit.

    Interrupted sweeps resume.
    """
    chosen, formats = method_named(method), picture_formats(plot)
    settings = given_settings(chosen, given)
    blocks = settings.pop("blocks", None)
    asked = None if blocks is None else parse_blocks(",".join(blocks))
    check_settings(chosen, settings)
    name = dataset or ("demo" if on.model == "demo" else None)
    if name is None:
        raise ErrataError("no dataset is named", "name one: --dataset counterfact")
    loaded = load_dataset(name, limit, offset, seed, skip_invalid)
    cases = loaded.cases
    text = given_corpus(corpus)
    check_results(on.results)
    edited = on.load(to_edit=True)
    methods, moments, facts = _prepared(edited, chosen, asked, settings, text, tokens)

    from errata.experiments.block_sweep import sweep_blocks as swept
    from errata.experiments.sweep_vs_trace import save_sweep

    beside: list[SideBySide] = []

    def finish(found: Sweep) -> None:
        if trace:
            beside.extend(_traced(edited, loaded, found))
        save_sweep(found, beside[0] if beside else None, formats)

    with console.bar("edits") as progress:
        found = swept(
            edited,
            cases,
            methods,
            moments,
            on.results,
            command=command_line(),
            progress=progress,
            finish=finish,
        )
    if on.json:
        result = {"model": on.model, "dataset": name, "cases": len(cases)}
        result |= {"run": str(found.folder), **found.as_json()}
        console.as_json(result | ({"trace": beside[0].as_json()} if beside else {}))
    else:
        _show(on.named, name, cases, found, beside[0] if beside else None, facts)


def _traced(edited: EditedModel, loaded: Loaded, found: Sweep) -> list[SideBySide]:
    """Trace a sweep's facts; if none of them is known, the sweep goes on without a trace."""
    from errata.experiments.sweep_vs_trace import side_by_side

    cases, subjects, cache = loaded.cases, loaded.subjects, cache_folder() / "noise"
    settings = TraceSettings()
    try:
        with console.bar("traces") as progress:
            return [side_by_side(edited, cases, found, settings, subjects, cache, progress)]
    except ErrataError as error:
        console.warning(f"no trace beside the sweep: {error.message}")
        return []


def _prepared(
    edited: EditedModel,
    method: type[Method],
    blocks: Sequence[int] | None,
    settings: dict[str, Any],
    corpus: Corpus | None,
    tokens: int | None,
) -> tuple[dict[int, Method], dict[int, SecondMoment], list[str]]:
    """Return the method and the second moment of every block, and lines about their sources."""
    from errata.methods.moments import moments_for
    from errata.methods.presets import settings_for
    from errata.models.families import family_of
    from errata.statistics.store import Store

    count = family_of(edited.model).block_count(edited.model)
    methods = {}
    for block in range(count) if blocks is None else blocks:
        given = {**settings, "blocks": (block,)}
        methods[block], source, notes = settings_for(method, edited, given)
    show_warnings(notes)
    moments: dict[int, SecondMoment] = {}
    facts = [f"settings: {source}"]
    first = next(iter(methods.values()))
    if first.moment_blocks:
        with console.bar("second moment") as progress:
            store = Store(moments_folder())
            moments_of, lines = moments_for(
                edited, first, store, corpus, tokens, progress, blocks=tuple(methods)
            )
        moments, facts = dict(moments_of), [*facts, *lines]
    return methods, moments, facts


def _show(
    model: str,
    dataset: str,
    cases: Sequence[Case],
    found: Sweep,
    beside: SideBySide | None,
    facts: Sequence[str],
) -> None:
    from errata.experiments.block_sweep import percent

    console.verb(f"errata sweep-blocks {model}, {found.method}")
    console.fact(f"{found.plan}; dataset {dataset}")
    for line in facts:
        console.fact(line)
    console.fact("percentages with 95 % intervals")
    names = [name.replace("same_subject_accuracy", "same subject") for name in found.columns]
    console.table(("block", *names), found.table())
    if beside:
        rows = [
            [str(b), *(percent(row[b]) for row in beside.effects.values())] for b in found.blocks
        ]
        console.table(("block", *beside.effects), rows)
    console.fact(found.verdict)
    for line in beside.sentences(found) if beside else ():
        console.fact(line)
    console.fact(f"saved {found.folder}")
    edit = f'errata edit {model} "…" TARGET --method {found.method.lower()} --blocks {found.best}'
    report = f"less {found.folder / 'report.md'}"
    console.next_step(*(() if found.best is None else (edit,)), report)
