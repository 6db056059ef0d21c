"""`errata run`: a recipe, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata import console
from errata.cli.options import Json, Results, cache_folder, command_line

if TYPE_CHECKING:
    from errata.stages import Outcome


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, YAML.", metavar="RECIPE")],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a value, as in --set edit.limit=10; may be repeated.",
            metavar="A.B=C",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Do a recipe that is finished once more.")
    ] = False,
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """Run a recipe: edit, then evaluate. One that was stopped goes on where it was.

    A recipe holds `model:` (a name, or name, path, adapter, adapter_kind, dtype, device, patches,
    allow_base), `edit:` (dataset, limit, offset, seed, skip_invalid, method, settings, hparams,
    batch_size, sequential, corpus, tokens) and `eval:`, one or a list of (dataset, limit, offset,
    seed, skip_invalid, generate, max_new_tokens, references).
    """  # fmt: skip
    from errata.recipe import read_recipe

    read = read_recipe(recipe, changes or ())

    from errata.stages import Surroundings, run_recipe

    around = Surroundings(results, cache_folder(), console.bar, console.warning, command_line())
    outcome = run_recipe(read, around, again=again)
    if json:
        console.as_json(
            {
                "recipe": str(recipe),
                "model": read.model.name,
                "run": str(outcome.folder),
                "results": str(results),
                "stages": outcome.stages,
            }
        )
    else:
        _show(recipe, results, outcome)


def _show(recipe: Path, results: Path, outcome: Outcome) -> None:
    from errata.stages import stage_rows

    console.verb(f"errata run {recipe}")
    if outcome.before:
        console.fact(f"finished before, in {outcome.folder}; --again does it once more")
    for name, found in outcome.stages.items():
        console.fact(f"{name}: {results / found['run']}")
        console.table(*stage_rows(found["summary"]))
    console.fact(f"kept {outcome.folder}")
    patches = [patch for found in outcome.stages.values() for patch in found["patches"]]
    console.next_step(
        f"less {outcome.folder / 'report.md'}",
        *([f"errata ls patches --results {results}"] if patches else []),
    )
