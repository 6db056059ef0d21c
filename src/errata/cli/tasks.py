"""`errata tasks`: benchmark tasks, without and with patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import command_line
from errata.core.errors import ErrataError
from errata.core.files import check_results

if TYPE_CHECKING:
    from errata.metrics.scores import Score


@on_model()
def tasks(
    on: OnModel,
    names: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Names of the eight commonsense tasks, `all`, files of rows, or hf:DATASET.",
            metavar="LIST",
        ),
    ] = None,
    harness: Annotated[
        str | None, typer.Option(help="Names of lm-eval tasks.", metavar="LIST")
    ] = None,
    data: Annotated[
        Path, typer.Option(help="The folder that holds <task>/test.json.", metavar="DIR")
    ] = Path("dataset"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of rows per task.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="auto, alpaca, llm-adapters, chat or plain.")
    ] = "auto",
    beams: Annotated[int, typer.Option(min=1, help="Number of beams of the beam search.")] = 4,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")
    ] = 32,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Number of few-shot examples (lm-eval).")
    ] = None,
    harness_folder: Annotated[
        Path | None, typer.Option(help="A folder with your own lm-eval task files.", metavar="DIR")
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="A folder with local copies of Hub datasets.", metavar="DIR")
    ] = None,
) -> None:
    """Score a model on benchmark tasks; with patches, before and after.

    --tasks generates an answer and searches it for the answer word, as LLM-Adapters does; answers
    without one are counted as format errors. --harness runs lm-eval, which compares likelihoods.
    Prompt patches act on generated answers, not on lm-eval. Interrupted runs resume.

    Example: errata tasks demo --tasks all --data dataset --limit 100
    """
    from errata.experiments.task_run import (
        HARNESS_TEXTS,
        TaskSettings,
        as_json,
        read_tasks,
        run_tasks,
    )
    from errata.metrics.prompts import inactive_note

    if names is None and harness is None:
        raise ErrataError(
            "no tasks are named",
            "use --tasks all, --tasks boolq,piqa, or --harness with tasks of lm-eval",
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
    check_results(on.results)
    read_tasks(asking)  # wrong names and files are reported before the model is loaded
    edited = on.load()
    if harness and (note := inactive_note(edited, HARNESS_TEXTS)):
        console.warning(note)
    with console.bar("rows") as progress:
        found, folder = run_tasks(edited, asking, on.results, command_line(), progress)
    if on.json:
        plain = {half: as_json(some) for half, some in found.items()}
        after = plain.pop("after")
        console.as_json(
            {
                "model": on.model,
                "patches": on.patches,
                "run": str(folder),
                "tasks": after,
                **plain,
            }
        )
        return
    _show(on.model, found, folder)


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
                    earlier: list[Score] = [before[name]] if name in before else []
                    rows.append([task, name, *(str(one) for one in (*earlier, score))])
        both = ("before", "after") if "before" in found else ("value",)
        console.table(("task", "figure", *both), rows)
    console.fact(f"saved {folder}")
    console.next_step(f"less {folder / 'report.md'}")
