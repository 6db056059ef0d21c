"""`errata tune`: fine-tune a model, including the edits applied to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import command_line, given_settings, settings_flags
from errata.cli.show_edit import show_plan
from errata.core.files import check_results
from errata.tuning.settings import PRESETS, TuneSettings, resolve_tuning


@settings_flags({"tuning": TuneSettings})
@on_model()
def tune(
    on: OnModel,
    *,
    data: Annotated[
        str,
        typer.Option(
            help="Rows with instruction, input and output: .json, .jsonl, hf:DATASET, demo-new or "
            "demo-same.",
            metavar="FILE",
        ),
    ],
    preset: Annotated[
        str | None, typer.Option(help=f"Preset to start from: {', '.join(PRESETS)}.")
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="A folder with local copies of Hub datasets.", metavar="DIR")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate the cost, from a few steps.")
    ] = False,
    given: dict[str, Any],
) -> None:
    """Fine-tune a model with an adapter or in full; edits applied to it are tuned with it.

    Every verb loads the result with --adapter RUN. Interrupted runs resume, with the same result
    as an uninterrupted run.

    Example: errata tune demo --patch P --data rows.jsonl --method lora --blocks edited
    """
    preset = preset or ("demo" if on.model == "demo" else None)
    own = given_settings(TuneSettings, given)
    settings = resolve_tuning(own, preset)

    from errata.data.instructions import read_rows
    from errata.experiments.tuning_run import run_tuning

    rows = read_rows(data, mirror)
    check_results(on.results)
    edited = on.load()
    if dry_run:
        from errata.experiments.costs.tuning import tuning_cost
        from errata.tuning.modules import moving

        steps = settings.steps_of(len(rows) - settings.validation)
        moved = len(moving(edited.model, settings, edited.weight_patches))
        lines = [f"{settings.method}: {moved} parameters, {steps} steps of {settings.batch_size}"]
        lines.append(_source(preset, own))
        show_plan(lines, edited, [tuning_cost(edited, rows, settings)], on.json)
        return
    with console.bar("steps") as progress:
        summary, folder = run_tuning(
            edited,
            rows,
            settings,
            on.results,
            source=data,
            command=command_line(),
            progress=progress,
        )
    if on.json:
        console.as_json(
            {"model": on.model, "run": str(folder), "preset": preset, "summary": summary}
        )
        return
    console.verb(f"errata tune {on.model}, {settings.method}")
    console.fact(_source(preset, own))
    _show(on.model, settings, summary, folder)


def _source(preset: str | None, own: dict[str, Any]) -> str:
    """Return the source of the settings, in words."""
    named = [name for name in own if name != "method"]
    return f"settings: {f'preset {preset}' if preset else 'defaults'}" + (
        f", except {', '.join(named)}" if named else ""
    )


def _show(model: str, settings: TuneSettings, summary: dict[str, Any], folder: Path) -> None:
    from errata.metrics.scores import Score

    steps = f"{summary['steps']} step{'s' * (summary['steps'] != 1)} of {settings.batch_size}"
    console.fact(f"{summary['rows']} rows, {steps}, learning rate {settings.rate:g}")
    console.fact(
        f"{len(summary['moved'])} weights changed, {summary['trained_numbers']:,} numbers trained"
    )
    if summary["cut"] or summary["dropped"]:
        console.warning(
            f"{summary['cut']} rows were truncated to {settings.cutoff_len} tokens; "
            f"{summary['dropped']} of them lost their answer and were dropped"
        )
    shown = [["training loss, last steps", f"{summary['loss']:.4f}"]]
    if summary["validation_loss"] is not None:
        shown.append(["validation loss", f"{summary['validation_loss']:.4f}"])
    for half in ("before", "after"):
        if f"edits_said_{half}" in summary:
            shown.append([f"edits recalled, {half}", str(Score(**summary[f"edits_said_{half}"]))])
    console.table(("figure", "value"), shown)
    console.fact(f"saved {folder / summary['made']}")
    console.next_step(
        f'errata chat {model} --adapter {folder} -p "…"',
        f"errata eval {model} --adapter {folder} --dataset …",
        f"less {folder / 'report.md'}",
    )
