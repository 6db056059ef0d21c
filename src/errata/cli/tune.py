"""`errata tune`: fine-tune a model as it stands, edits included."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    command_line,
    given_settings,
    load_model,
    settings_flags,
)
from errata.cli.show_edit import show_plan
from errata.tuning.settings import PRESETS, TuneSettings, resolve_tuning


@settings_flags({"tune": TuneSettings})
def tune(
    model: Model,
    *,
    data: Annotated[
        str,
        typer.Option(
            help="Rows {instruction, input, output}: .json, .jsonl, hf:DATASET, demo-new, "
            "demo-same.",
            metavar="FILE",
        ),
    ],
    preset: Annotated[
        str | None, typer.Option(help=f"Settings to begin with: {', '.join(PRESETS)}.")
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="A folder with copies of Hub datasets.", metavar="DIR")
    ] = None,
    patch: Patches = None,
    results: Results = Path("results"),
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost, from a few steps.")
    ] = False,
    json: Json = False,
    given: dict[str, Any],
) -> None:
    """Fine-tune a model, with an adapter or whole; edits on it are tuned as they stand.

    What comes out loads with --adapter RUN everywhere. A run that was stopped goes on and ends
    as if it had not been.

    Example: errata tune demo --patch P --data rows.jsonl --method lora --blocks edited
    """
    preset = preset or ("demo" if model == "demo" else None)
    own = given_settings(TuneSettings, given)
    settings = resolve_tuning(own, preset)

    from errata.data.instructions import read_rows
    from errata.experiments.tuning_run import run_tuning

    rows = read_rows(data, mirror)
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    if dry_run:
        from errata.experiments.costs.tuning import tuning_cost
        from errata.tuning.modules import moving

        steps = settings.steps_of(len(rows) - settings.validation)
        moved = len(moving(edited.model, settings, edited.weight_patches))
        lines = [f"{settings.method}: {moved} parameters, {steps} steps of {settings.batch_size}"]
        lines.append(_told(preset, own))
        show_plan(lines, edited, [tuning_cost(edited, rows, settings)], json)
        return
    with console.bar("steps") as progress:
        summary, folder = run_tuning(
            edited,
            rows,
            settings,
            results,
            source=data,
            command=command_line(),
            progress=progress,
        )
    if json:
        told = {"model": model, "run": str(folder), "preset": preset, "summary": summary}
        console.as_json(told)
        return
    console.verb(f"errata tune {model}, {settings.method}")
    console.fact(_told(preset, own))
    _show(model, settings, summary, folder)


def _told(preset: str | None, own: dict[str, Any]) -> str:
    """Say where settings come from."""
    named = [name for name in own if name != "method"]
    return f"settings: {f'preset {preset}' if preset else 'defaults'}" + (
        f", but for {', '.join(named)}" if named else ""
    )


def _show(model: str, settings: TuneSettings, summary: dict[str, Any], folder: Path) -> None:
    from errata.metrics.scores import Score

    steps = f"{summary['steps']} step{'s' * (summary['steps'] != 1)} of {settings.batch_size}"
    console.fact(f"{summary['rows']} rows, {steps}, learning rate {settings.rate:g}")
    console.fact(
        f"{len(summary['moved'])} parameters moved, {summary['trained_numbers']:,} numbers trained"
    )
    if summary["cut"] or summary["dropped"]:
        console.warning(
            f"{summary['cut']} rows were cut at {settings.cutoff_len} tokens, "
            f"{summary['dropped']} of them lost their answer and were left out"
        )
    shown = [["loss, last steps", f"{summary['loss']:.4f}"]]
    if summary["validation_loss"] is not None:
        shown.append(["loss, rows set aside", f"{summary['validation_loss']:.4f}"])
    for half in ("before", "after"):
        if f"edits_said_{half}" in summary:
            shown.append([f"edits said, {half}", str(Score(**summary[f"edits_said_{half}"]))])
    console.table(("figure", "value"), shown)
    console.fact(f"kept {folder / summary['made']}")
    console.next_step(
        f'errata chat {model} --adapter {folder} -p "…"',
        f"errata eval {model} --adapter {folder} --dataset …",
        f"less {folder / 'report.md'}",
    )
