"""What a recipe's stages `tune` and `survival` do; `stages` goes through them.

A stage's summary holds scores alone: of a tuning how many edits the model still says, of a
matrix the classes and decays of every configuration. The runs that they name hold the rest.
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

TOLD = ("stable", "erased", "emergent", "impossible", "flip_rate", "decay")

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
    """Do either stage; return what the recipe keeps of it. `fresh` loads the recipe's model."""
    if isinstance(stage, TuneStage):
        return _tune(edited, stage, results, bar, command)
    return _survive(fresh, stage, results, cache, bar, command)


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


def _survive(
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
    told = {
        f"{cell['method']} {cell['edits']} {cell['tuning']}: {name}": cell[name]
        for cell in summary["configurations"]
        for name in TOLD
        if name in cell
    }
    return {"run": str(folder.relative_to(results)), "patches": [], "summary": told}
