"""`errata tasks`: how well a model does elsewhere, without and with patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Results,
    command_line,
    load_model,
)
from errata.core.errors import ErrataError

if TYPE_CHECKING:
    from errata.metrics.scores import Score


def tasks(
    model: Model,
    names: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="The eight by name, `all` of them, files of rows, or hf:DATASET.",
            metavar="LIST",
        ),
    ] = None,
    harness: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval, by its names.", metavar="LIST")
    ] = None,
    data: Annotated[
        Path, typer.Option(help="The folder that holds <task>/test.json.", metavar="DIR")
    ] = Path("dataset"),
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many rows of each.")] = None,
    template: Annotated[
        str, typer.Option(help="auto, alpaca, llm-adapters, chat or plain.")
    ] = "auto",
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples, for lm-eval.")] = None,
    harness_folder: Annotated[
        Path | None, typer.Option(help="Task files of your own, for lm-eval.", metavar="DIR")
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="A folder with copies of Hub datasets.", metavar="DIR")
    ] = None,
    patch: Annotated[
        list[Path] | None,
        typer.Option("--patch", help="A patch; several are put on in order."),
    ] = None,
    results: Results = Path("results"),
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
) -> None:
    """Score a model at tasks, in either of two protocols; with patches, before and after.

    --tasks lets it write and looks for the answer word, as LLM-Adapters does; a text without
    one breaks the format, which is counted apart. --harness lets lm-eval compare likelihoods.
    A run that was stopped goes on where it was.

    Example: errata tasks demo --tasks all --data dataset --limit 100
    """
    from errata.experiments.task_run import TaskSettings, as_json, run_tasks

    if names is None and harness is None:
        raise ErrataError(
            "say what to ask", "--tasks all, --tasks boolq,piqa, or a task of lm-eval: --harness"
        )
    asking = TaskSettings.of(
        {
            "tasks": (names or "").split(",") if names else (),
            "harness": harness.split(",") if harness else (),
            "data": str(data),
            "limit": limit,
            "template": template,
            "beams": beams,
            "max_new_tokens": max_new_tokens,
            "shots": shots,
            "mirror": None if mirror is None else str(mirror),
            "harness_folder": None if harness_folder is None else str(harness_folder),
        }
    )
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    with console.bar("rows") as progress:
        found, folder = run_tasks(edited, asking, results, command_line(), progress)
    if json:
        plain = {half: as_json(some) for half, some in found.items()}
        after = plain.pop("after")
        console.as_json(
            {
                "model": model,
                "patches": [str(path) for path in patch or ()],
                "run": str(folder),
                "tasks": after,
                **plain,
            }
        )
        return
    _show(model, found, folder)


def _show(model: str, found: dict[str, dict[str, Any]], folder: Path) -> None:
    console.verb(f"errata tasks {model}")
    protocols = {each["protocol"]: None for each in found["after"].values()}
    for protocol in protocols:
        console.fact(protocol)
        rows = []
        for task, each in found["after"].items():
            if each["protocol"] == protocol:
                for name, score in each["figures"].items():
                    before = found.get("before", {}).get(task, {}).get("figures", {})
                    told: list[Score] = [before[name]] if name in before else []
                    rows.append([task, name, *(str(one) for one in (*told, score))])
        both = ("before", "after") if "before" in found else ("value",)
        console.table(("task", "figure", *both), rows)
    console.fact(f"kept {folder}")
    console.next_step(f"less {folder / 'report.md'}")
