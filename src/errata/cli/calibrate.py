"""`errata calibrate`: find the settings of a method for a model, and store them as a preset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import (
    command_line,
    given_corpus,
    given_settings,
    load_dataset,
    settings_flags,
    show_skipped,
    show_warnings,
)
from errata.cli.show_edit import duration, show_plan
from errata.core.errors import ErrataError
from errata.core.files import check_results
from errata.core.places import moments_folder, presets_folder
from errata.data.case import Case
from errata.data.request_files import load_requests
from errata.experiments.calibration.settings import Calibration
from errata.experiments.edit_plan import EditPlan, check_batches
from errata.methods import METHODS, Method, method_named
from errata.methods.presets import check_settings, shipped_settings

if TYPE_CHECKING:
    from errata.core.cost import Cost
    from errata.experiments.calibration.facts import Facts
    from errata.experiments.calibration.run import Calibrated, Choices
    from errata.patches.edited_model import EditedModel


@settings_flags(METHODS)
@on_model()
def calibrate(
    on: OnModel,
    *,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Cases: a dataset's name or a file (default for `demo`: demo).",
            metavar="NAME|FILE",
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(help="A file of requests (.json, .jsonl, .csv, .tsv), instead of a dataset."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of cases to choose settings on.")] = 30,
    held_out: Annotated[
        int, typer.Option(min=1, help="Number of cases after them, held out for the final scores.")
    ] = 30,
    offset: Annotated[
        int, typer.Option(min=0, help="Number of cases to skip at the start of the dataset.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the dataset with this seed.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Skip invalid records and report their number.")
    ] = False,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "memit",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Requests per batch (default: all in one; for ROME each alone)."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of settings to try.")] = 36,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to measure the KL divergence on (default: the corpus, or text sampled from "
            "the model)."
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Corpus for the second moments (see `errata stats`).")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus to use.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the preset to this file as well.", metavar="FILE")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan and its estimated cost.")
    ] = False,
    given: dict[str, Any],
) -> None:
    """Find settings of a method for a model on facts that it knows, and store them as a preset.

    Settings that are given as flags are fixed, the others are searched. Interrupted runs resume.
    """
    chosen = method_named(method)
    fixed = given_settings(chosen, given)
    check_settings(chosen, fixed)
    name, cases = _cases(on.model, dataset, facts, limit + held_out, offset, seed, skip_invalid)
    plan = EditPlan(batch_size=_batch_size(chosen, batch_size))
    for part in (cases[: len(cases) - held_out], cases[len(cases) - held_out :]):
        for lines in check_batches(part, plan):
            show_warnings(lines)
    given_corpus(corpus)
    given_corpus(text)
    from errata.experiments.calibration.search import require_optuna

    require_optuna()
    if not dry_run:
        check_results(on.results)
    if out is not None and out.is_dir():
        raise ErrataError(f"{out} is a folder", "name a file for the preset: --out FILE")
    edited = on.load(to_edit=True)

    from errata.experiments.calibration.facts import split_facts
    from errata.experiments.calibration.run import Choices

    count = limit + held_out if len(cases) >= limit + held_out else len(cases)
    base, source, notes = shipped_settings(chosen, edited, fixed)
    show_warnings(_without_guess(notes))
    known = split_facts(edited, name, cases[:count], held_out)
    settings = Calibration(trials=trials)
    choices = Choices(base, fixed, plan, settings, text, corpus, tokens)
    _run(on, edited, known, choices, source, out, dry_run)


def _run(
    on: OnModel,
    edited: EditedModel,
    known: Facts,
    choices: Choices,
    source: str,
    out: Path | None,
    dry_run: bool,
) -> None:
    from errata.core.cost import total
    from errata.experiments.calibration.cost import calibration_costs
    from errata.experiments.calibration.run import calibrate as calibrated
    from errata.experiments.fact_editing import Feedback
    from errata.statistics.store import Store

    store = Store(moments_folder())
    costs = calibration_costs(edited, known, choices, store)
    lines = [f"{choices.base.label}, from {source}: {choices.calibration.trials} trials"]
    lines += known.lines()
    if dry_run:
        show_plan(lines, edited, costs, on.json)
        return
    for line in (*lines, _costs_line(costs, total(costs))):
        console.progress_line(line)
    found = calibrated(
        edited,
        known,
        choices,
        on.results,
        Feedback(console.bar, console.progress_line, console.warning),
        store=store,
        command=command_line(),
    )
    own = presets_folder() / found.preset.file_name
    for path in (own, *([] if out is None else [out])):
        found.preset.save(path)
    if on.json:
        result = {"model": on.model, "run": str(found.folder), "preset": str(own)}
        console.as_json({**result, **found.as_json()})
    else:
        _show(on, found, own)


def _cases(
    model: str,
    dataset: str | None,
    facts: Path | None,
    count: int,
    offset: int,
    seed: int | None,
    skip_invalid: bool,
) -> tuple[str, list[Case]]:
    """Return the name of the source, and its cases."""
    name = dataset or ("demo" if model == "demo" and facts is None else None)
    if (name is None) == (facts is None):
        raise ErrataError(
            "name either a dataset or a file of facts",
            "a dataset: --dataset counterfact, or --dataset FILE",
            "your own facts: --facts FILE",
        )
    if name is not None:
        return name, load_dataset(name, count, offset, seed, skip_invalid).cases
    assert facts is not None
    if seed is not None:
        raise ErrataError(
            "--seed cannot be used with --facts",
            "a file of requests may be given as --dataset FILE",
        )
    read, problems, _ = load_requests(facts, skip_invalid=skip_invalid)
    show_skipped(problems)
    return str(facts), [Case(request=request) for request in read[offset : offset + count]]


def _batch_size(method: type[Method], asked: int | None) -> int | None:
    """Return the batch size, which may not exceed what the method writes at once."""
    limit = method.batch_limit
    if limit is not None and asked is not None and asked > limit:
        raise ErrataError(
            f"{method.label} is calibrated on batches of at most {limit}",
            f"give --batch-size {limit}, or leave it out",
        )
    return asked or limit


def _without_guess(notes: Sequence[str]) -> list[str]:
    """Return the warnings but the one that blocks are a guess, which a calibration replaces."""
    return [note for note in notes if not note.startswith("no preset for ")]


def _costs_line(costs: Sequence[Cost], in_all: Cost) -> str:
    parts = ", ".join(f"{cost.what} {duration(cost.seconds)}" for cost in costs)
    return f"about {duration(in_all.seconds)} on this machine: {parts}"


def _show(on: OnModel, found: Calibrated, own: Path) -> None:
    from errata.experiments.calibration.report import front_rows, lines
    from errata.reports.tables import score_table

    console.verb(f"errata calibrate {on.named}, {found.preset.method}")
    for line in lines(found):
        console.fact(line)
    columns, rows = front_rows(found, [])
    console.table(columns, rows)
    kinds = [name for name in found.after if "_" not in name]
    before, after = ({n: s[n] for n in kinds if n in s} for s in (found.before, found.after))
    console.fact(f"held-out facts, {found.preset.evidence.plan}:")
    console.table(*score_table(before, after))
    console.fact(f"saved {own}, which edits of this model now use")
    method = f"--method {found.preset.method}"
    console.next_step(
        f'errata edit {on.named} "The {{subject}} is" target {method}',
        "errata ls presets",
        f"less {found.folder / 'report.md'}",
    )
