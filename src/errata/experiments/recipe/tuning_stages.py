"""The stages `tune` and `survival` of a recipe.

The summary of a stage contains only scores: for a tuning the share of edits that the model still
predicts, for a matrix the classes and decays of every configuration. The stage's run has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from errata.core.progress import Progress
from errata.data.instructions import read_rows
from errata.experiments.survival.questions import read_questions
from errata.experiments.survival.run import run_survival
from errata.experiments.survival.settings import Matrix
from errata.experiments.tuning_run import run_tuning
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store
from errata.tuning.settings import TuneStage

SHOWN = ("stable", "erased", "emergent", "impossible", "flip_rate", "decay")
"""Scores of a configuration that the summary contains."""

Bar = Callable[[str], AbstractContextManager[Progress]]


def tuning_stage(
    edited: EditedModel,
    stage: TuneStage | Matrix,
    fresh: Callable[[], EditedModel],
    results: Path,
    cache: Path,
    bar: Bar,
    command: str | None,
) -> dict[str, Any]:
    """Run either stage and return its result for the recipe; `fresh` loads the recipe's model."""
    if isinstance(stage, TuneStage):
        return _tune(edited, stage, results, bar, command)
    return _survival(fresh, stage, results, cache, bar, command)


def _tune(
    edited: EditedModel, stage: TuneStage, results: Path, bar: Bar, command: str | None
) -> dict[str, Any]:
    rows = read_rows(stage.data, None if stage.mirror is None else Path(stage.mirror))
    with bar("steps") as progress:
        summary, folder = run_tuning(
            edited,
            rows,
            stage.resolved(),
            results,
            source=stage.data,
            command=command,
            progress=progress,
        )
    names = [name for name in ("edits_said_before", "edits_said_after") if name in summary]
    return {
        "run": str(folder.relative_to(results)),
        "patches": [],
        "tuned": summary["made"],
        "summary": {name: summary[name] for name in names},
    }


def _survival(
    fresh: Callable[[], EditedModel],
    matrix: Matrix,
    results: Path,
    cache: Path,
    bar: Bar,
    command: str | None,
) -> dict[str, Any]:
    questions, rows = read_questions(matrix, cache / "datasets")
    with bar("configurations") as progress:
        summary, folder = run_survival(
            matrix,
            fresh,
            questions,
            rows,
            results,
            store=Store(cache / "moments"),
            command=command,
            progress=progress,
        )
    scores = {
        f"{cell['method']} {cell['edits']} {cell['tuning']}: {name}": cell[name]
        for cell in summary["configurations"]
        for name in SHOWN
        if name in cell
    }
    return {"run": str(folder.relative_to(results)), "patches": [], "summary": scores}
