"""The estimated cost of a recipe, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from errata.core.cost import Cost
from errata.data.instructions import read_rows
from errata.experiments.costs.editing import evaluation_cost, plan_edits
from errata.experiments.costs.tuning import matrix_costs, tuning_cost
from errata.experiments.recipe.run import (
    Surroundings,
    asking_of,
    load_all,
    load_choice,
    settings_of,
)
from errata.experiments.recipe.schema import EditStage, EvalStage, Recipe
from errata.experiments.survival.questions import read_questions
from errata.experiments.survival.settings import Matrix
from errata.methods import method_named
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store
from errata.tuning.modules import edited_blocks, placed
from errata.tuning.settings import TuneStage


def recipe_costs(recipe: Recipe, around: Surroundings) -> tuple[EditedModel, list[Cost]]:
    """Return the model and the cost of each stage; nothing is edited or stored."""
    cases = load_all(recipe, around)
    edited = load_choice(recipe.model, to_edit=recipe.edits)
    written = list(edited_blocks(edited.model, edited.weight_patches))
    costs: list[Cost] = []
    for name, stage in recipe.stages():
        if isinstance(stage, EditStage):
            forecast = plan_edits(
                edited,
                method_named(stage.method),
                settings_of(stage, around),
                cases[name].cases,
                recipe.plan(stage),
                store=Store(around.cache / "moments"),
                corpus=stage.corpus,
                tokens=stage.tokens,
            )
            for note in forecast.warnings:
                around.warn(note)
            written += forecast.method.edited_blocks
            found = forecast.costs
        elif not isinstance(stage, EvalStage):
            found = _tuning(edited, stage, sorted(set(written)), around.cache)
        else:
            edits = recipe.edit is not None or recipe.model.patches
            halves = 2 + stage.controls if edits else 1
            found = [evaluation_cost(edited, cases[name].cases, asking_of(stage), halves)]
        costs += [cost._replace(what=f"{name}: {cost.what}") for cost in found]
    return edited, costs


def _tuning(
    edited: EditedModel, stage: TuneStage | Matrix, written: Sequence[int], cache: Path
) -> list[Cost]:
    """Return the cost of a tuning stage; `written` are the blocks edited before it."""
    if isinstance(stage, Matrix):
        questions, rows = read_questions(stage, cache / "datasets")
        return matrix_costs(edited, stage, questions, rows, Store(cache / "moments"))
    rows = read_rows(stage.data, None if stage.mirror is None else Path(stage.mirror))
    count = family_of(edited.model).block_count(edited.model)
    return [tuning_cost(edited, rows, placed(stage.resolved(), written, count))]
