"""Running a survival matrix; each piece is stored when it is finished.

    results/survival/run_<NNN>/  params.json summary.json report.md *.csv *.png
        base.json  edits/<method>-<n>/  controls/<tuning>.json  configurations/<name>.json

Edits are computed once per method and number of edits, and the unedited model is tuned once per
tuning; all configurations share both. Interrupted runs resume at the first unfinished piece, and
within a tuning at the last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.files import parse_json, reading_own
from errata.core.progress import Progress, no_progress
from errata.data.case import cases_digest
from errata.data.instructions import Instruction, digest_of
from errata.experiments.edit_plan import matrix_words
from errata.experiments.parts import Parts, json_format
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import finished_run, run_folder
from errata.experiments.survival.figures import write_plots
from errata.experiments.survival.measure import (
    Questions,
    displacement,
    read_states,
    save_states,
    states_of,
)
from errata.experiments.survival.outcomes import require_statsmodels
from errata.experiments.survival.report import sections, write_tables
from errata.experiments.survival.settings import Matrix, Tuning
from errata.experiments.survival.summary import as_json, read_configurations
from errata.methods import METHODS, method_named
from errata.methods.edit import compute_edit, prepare
from errata.methods.presets import settings_for
from errata.models.families import family_of
from errata.patches.base import Edit, load_edit
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store
from errata.tuning.guards import none_projected
from errata.tuning.modules import moving, placed, tuned_blocks
from errata.tuning.settings import TuneSettings
from errata.tuning.train import check_length, tune


@dataclass(frozen=True)
class Survival:
    """A matrix in progress."""

    matrix: Matrix
    fresh: Callable[[], EditedModel]
    """Loads a new copy of the unedited model."""
    questions: Questions
    rows: Sequence[Instruction]
    """The rows to tune on."""
    store: Store | None
    folder: Path
    command: str | None
    progress: Progress

    @property
    def parts(self) -> Parts[dict[str, Any]]:
        """The stored pieces."""
        return Parts(self.folder, json_format())

    def run(self) -> None:
        """Compute every piece that is not stored yet."""
        names = list(self.names())
        for done, (method, count, tuning, seed) in enumerate(names):
            self.progress(done, len(names))
            self.configuration(method, count, tuning, seed)
        self.progress(len(names), len(names))

    def names(self) -> list[tuple[str, int, Tuning, int]]:
        """Return the configurations, small numbers of edits first."""
        tunings = [Tuning.parse(name) for name in self.matrix.tunings]
        return [
            (method, count, tuning, seed)
            for count in self.matrix.edits
            for method in self.matrix.methods
            for tuning in tunings
            for seed in self.matrix.seeds
        ]

    def base(self) -> dict[str, Any]:
        """Score the unedited model, once."""

        def ask() -> dict[str, Any]:
            edited = self.fresh()
            save_states(self.folder / "base.safetensors", states=self._states(edited))
            return self.questions.ask(edited)

        return self.parts.one("base", ask)

    def edits(self, method: str, count: int) -> Edit:
        """Compute the edits of a method, once, and score the edited model."""
        place = self.folder / "edits" / f"{method}-{count}"
        patch = place / "patch.safetensors"

        def ask() -> dict[str, Any]:
            self.base()
            edited = self.fresh()
            if not patch.exists():
                self._edit(edited, method, count).save(patch)
                edited = self.fresh()
            edited.apply(load_edit(patch))
            save_states(place / "states.safetensors", states=self._states(edited, count))
            return self.questions.ask(edited, count)

        self.parts.one(f"edits/{method}-{count}/edited", ask)
        return load_edit(patch)

    def _edit(self, edited: EditedModel, method: str, count: int) -> Edit:
        ready = prepare(
            edited,
            method_named(method),
            self.matrix.settings.get(method, {}),
            store=self.store,
            corpus=self.matrix.corpus,
        )
        requests = [case.request for case in self.questions.cases[:count]]
        return compute_edit(
            edited, requests, ready.method, moments=ready.moments, command=self.command
        )

    def control(self, settings: TuneSettings, blocks: Sequence[int]) -> str:
        """Tune the unedited model's same blocks and score it, once; return the piece's name."""
        plain = settings.with_values(
            shift_penalty=0.0,
            project=False,
            reapply=False,
            blocks="all" if settings.blocks == "all" else ",".join(map(str, blocks)),
        )
        text = plain.model_dump_json()
        name = f"{plain.method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

        def ask() -> dict[str, Any]:
            edited = self.fresh()
            self._tune(edited, plain, name)
            return {"settings": json.loads(text), **self.questions.ask(edited)}

        self.parts.one(f"controls/{name}", ask)
        self._clear(name)
        return name

    def configuration(self, method: str, count: int, tuning: Tuning, seed: int) -> None:
        """Tune the edited model and score it, and compute the pieces it is compared with."""
        name = f"{method}-{count}-{tuning.name}-s{seed}"
        self.parts.one(
            f"configurations/{name}", lambda: self._tuned(name, method, count, tuning, seed)
        )
        self._clear(name)

    def _tuned(
        self, name: str, method: str, count: int, tuning: Tuning, seed: int
    ) -> dict[str, Any]:
        patch = self.edits(method, count)
        edited = self.fresh()
        edited.apply(patch)
        settings = self.matrix.settings_of(tuning, seed)
        blocks = tuned_blocks(edited.model, settings, edited.weight_patches)
        control = self.control(settings, blocks)
        tuned = self._tune(edited, settings, name)
        states = [
            read_states(self.folder / place)["states"]
            for place in ("base.safetensors", f"edits/{method}-{count}/states.safetensors")
        ]
        moved = displacement(states[0][:, : states[1].shape[1]], states[1],
                             self._states(edited, count))  # fmt: skip
        return {
            "method": METHODS[method].label,
            "edits": count,
            "tuning": tuning.name,
            "seed": seed,
            "settings": settings.model_dump(mode="json"),
            "blocks": list(blocks),
            "edited": f"edits/{method}-{count}/edited.json",
            "control": f"controls/{control}.json",
            "losses": tuned,
            "displacement": moved,
            "tuned": self.questions.ask(edited, count),
        }

    def _states(self, edited: EditedModel, count: int | None = None) -> Any:
        return states_of(edited, self.questions.cases[:count])

    def _tune(self, edited: EditedModel, settings: TuneSettings, name: str) -> list[Any]:
        found = tune(edited, self.rows, settings, self.folder / "work" / name)
        return [list(pair) for pair in found.losses]

    def _clear(self, name: str) -> None:
        shutil.rmtree(self.folder / "work" / name, ignore_errors=True)


def check_fit(matrix: Matrix, edited: EditedModel) -> None:
    """Raise `ErrataError` if the model lacks the blocks, matrices or positions of the settings."""
    if len(matrix.methods) * len(matrix.tunings) > 1:
        require_statsmodels()
    model, family = edited.model, family_of(edited.model)
    count = family.block_count(model)
    for name in matrix.methods:
        method, *_ = settings_for(method_named(name), edited, matrix.settings.get(name, {}))
        written = set(method.weight_names(model))
        for tuning in map(Tuning.parse, matrix.tunings):
            settings = matrix.settings_of(tuning, 0)
            names = moving(model, placed(settings, method.edited_blocks, count), ())
            check_length(model, settings)
            if settings.project and not written & set(names):
                raise none_projected()


def run_survival(
    matrix: Matrix,
    fresh: Callable[[], EditedModel],
    questions: Questions,
    rows: Sequence[Instruction],
    results: Path,
    *,
    store: Store | None = None,
    command: str | None = None,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], Path]:
    """Run a matrix; return its scores as in `summary.json`, and the folder.

    Raises `ErrataError` for settings that do not fit the model, before the folder is made.
    """
    edited = fresh()
    check_fit(matrix, edited)
    params = _params(matrix, edited, questions, rows)
    with run_folder(results, "survival", params, command) as (folder, _):
        Survival(matrix, fresh, questions, rows, store, folder, command, progress).run()
        shutil.rmtree(folder / "work", ignore_errors=True)
        return finish(folder, command), folder


def finished_survival(
    matrix: Matrix,
    edited: EditedModel,
    questions: Questions,
    rows: Sequence[Instruction],
    results: Path,
) -> tuple[dict[str, Any], Path] | None:
    """Return the result of an earlier, finished `run_survival` of the same; None without one.

    `edited` is the unedited model.
    """
    folder = finished_run(results, "survival", _params(matrix, edited, questions, rows))
    if folder is None:
        return None
    with reading_own(folder / "summary.json"):
        return dict(parse_json((folder / "summary.json").read_text("utf-8"))), folder


def _params(
    matrix: Matrix, edited: EditedModel, questions: Questions, rows: Sequence[Instruction]
) -> dict[str, Any]:
    """Return the parameters that identify a run."""
    texts = "\0".join(passage.text for passage in questions.passages)
    return {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "matrix": matrix.model_dump(mode="json"),
        "cases": cases_digest([*questions.cases, *questions.controls]),
        "rows": digest_of(rows),
        "tasks": {task.name: digest_of(task.rows) for task in questions.tasks},
        "text": hashlib.sha256(texts.encode()).hexdigest() if texts else None,
    }


def finish(folder: Path, command: str | None = None) -> dict[str, Any]:
    """Write tables, figures, report and summary from the stored pieces of a matrix."""
    configurations = read_configurations(folder)
    pictures = write_plots(folder, configurations)
    counts = sorted({each.edits for each in configurations})
    summary = {"plan": matrix_words(counts), **as_json(configurations)}
    write_tables(folder, configurations, summary["tests"])
    params = json.loads((folder / "params.json").read_text("utf-8"))
    heading = f"survival, {folder.name}: {params['model']['name']}"
    parts = [
        f"{summary['plan']}.",
        *sections(configurations, summary["tests"], pictures, params["matrix"]["seeds"]),
    ]
    write_results(folder, heading, parts, summary, command=command)
    return summary
