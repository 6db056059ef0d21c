"""`errata run`: run a recipe, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import console
from errata.cli.options import Json, Results, command_line
from errata.cli.show_edit import show_plan
from errata.core.places import cache_folder

if TYPE_CHECKING:
    from errata.experiments.recipe.run import Outcome
    from errata.experiments.recipe.schema import Recipe


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe: a YAML file.", metavar="RECIPE")],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a value, as in --set edit.limit=10; may be repeated.",
            metavar="A.B=C",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Run a finished recipe again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done, and estimate the cost.")
    ] = False,
    results: Results = Path("results"),
    json: Json = False,
) -> None:
    """Run a recipe: edit, tune, evaluate. Interrupted runs resume.

    A recipe holds `model:` (a name, or name, path, adapter, adapter_kind, dtype, device, patches,
    allow_base), `edit:` (dataset, limit, offset, seed, skip_invalid, method, settings, hparams,
    batch_size, sequential, corpus, tokens), `tune:` (data, preset, settings, mirror), `eval:`, one
    or a list of (dataset, limit, offset, seed, skip_invalid, generate, max_new_tokens, references,
    template, system)
    and `survival:` (methods, edits, tunings, seeds, dataset, controls, data, hold_out, tasks,
    task_data, task_limit, max_new_tokens, text, preset, tune, settings, corpus).
    """  # fmt: skip
    from errata.experiments.recipe.schema import read_recipe

    read = read_recipe(recipe, changes or ())

    from errata.experiments.recipe.run import Surroundings, run_recipe

    around = Surroundings(results, cache_folder(), console.bar, console.warning, command_line())
    if dry_run:
        from errata.experiments.costs.recipe import recipe_costs

        edited, costs = recipe_costs(read, around)
        show_plan(_plan_lines(read), edited, costs, json)
        return
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


def _plan_lines(recipe: Recipe) -> list[str]:
    """Return the contents of a recipe: a line per stage, and one for the plan of the edits."""
    lines = []
    for name, stage in recipe.stages():
        given = stage.model_dump(exclude_defaults=True)
        lines.append(f"{name}: " + (", ".join(f"{k} {v}" for k, v in given.items()) or "defaults"))
        lines += [f"{name}: {recipe.plan(recipe.edit).words()}"] if stage is recipe.edit else []
    return lines


def _show(recipe: Path, results: Path, outcome: Outcome) -> None:
    from errata.experiments.recipe.report import stage_lines, stage_rows

    console.verb(f"errata run {recipe}")
    if outcome.before:
        console.fact(f"already finished, in {outcome.folder}; --again runs it again")
    for name, found in outcome.stages.items():
        console.fact(f"{name}: {results / found['run']}")
        for line in stage_lines(found):
            console.fact(line)
        console.table(*stage_rows(found["summary"]))
    console.fact(f"saved {outcome.folder}")
    patches = [patch for found in outcome.stages.values() for patch in found["patches"]]
    console.next_step(
        f"less {outcome.folder / 'report.md'}",
        *([f"errata ls patches --results {results}"] if patches else []),
    )
