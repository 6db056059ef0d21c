"""Running a recipe stage by stage; the result of each stage is stored.

    results/recipe/run_<NNN>/  params.json stages/<stage>.json summary.json report.md

Each stage is a run of its own (`results/MEMIT/run_<NNN>`, `results/eval/run_<NNN>`); the files here
refer to those runs. An interrupted recipe is found by its params and resumes: finished stages are
not run again, and the unfinished one resumes its own run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, Say
from errata.core.text import counted
from errata.data.case import Case, cases_digest
from errata.data.datasets import Loaded, load_cases, reference_file
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import as_json, run_edits
from errata.experiments.eval_run import run_evaluation
from errata.experiments.recipe.report import sections
from errata.experiments.recipe.schema import (
    CaseChoice,
    EditStage,
    EvalStage,
    ModelChoice,
    Recipe,
    Stage,
)
from errata.experiments.recipe.tuning_stages import tuning_stage
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import finished_run, run_folder
from errata.experiments.tuning_run import take_tuned
from errata.methods import method_named
from errata.methods.edit import Prepared, prepare
from errata.methods.published_hparams import read_hparams
from errata.metrics.base import EvalSettings
from errata.models.loading import first_device
from errata.patches.base import load_edit
from errata.patches.edited_model import EditedModel, load
from errata.statistics.store import Store

EDITED = "what was edited"
"""Name, in the params of an evaluation, of the cases of the preceding edit."""


class Surroundings(NamedTuple):
    """The folders that a recipe uses, and where its progress and warnings go."""

    results: Path
    cache: Path
    """Folder of stored datasets and second moments."""
    bar: Callable[[str], AbstractContextManager[Progress]]
    """Opens a progress bar with a title."""
    warn: Say
    """Takes warnings."""
    command: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a recipe."""

    folder: Path
    stages: dict[str, dict[str, Any]]
    """Per stage its run, patches and summary."""
    before: bool = False
    """Whether the recipe had already been finished by an earlier run."""


def load_choice(choice: ModelChoice, *, to_edit: bool = False) -> EditedModel:
    """Load the model of a recipe, one that can be edited if `to_edit`."""
    return load(
        choice.name,
        path=choice.path,
        adapter=choice.adapter,
        adapter_kind=choice.adapter_kind,
        dtype=choice.dtype,
        device=choice.device or first_device(),
        patches=choice.patches,
        allow_base=choice.allow_base,
        to_edit=to_edit,
    )


def load_all(recipe: Recipe, around: Surroundings) -> dict[str, Loaded]:
    """Read the cases of every stage, so that errors in them are raised at the start."""
    found: dict[str, Loaded] = {}
    for name, stage in ((n, s) for n, s in recipe.stages() if isinstance(s, CaseChoice)):
        if stage.dataset is None:
            found[name] = found["edit"]
        else:
            found[name] = _load(stage, around)
        if found[name].skipped:
            skipped = counted(len(found[name].skipped), "invalid record")
            around.warn(f"{name}: skipped {skipped}")
    return found


def _load(stage: CaseChoice, around: Surroundings) -> Loaded:
    cache, texts = around.cache / "datasets", None
    if isinstance(stage, EvalStage) and stage.generate and stage.references is not None:
        texts = reference_file(stage.references, cache)
    assert stage.dataset is not None
    return load_cases(
        stage.dataset,
        stage.limit,
        stage.offset,
        seed=stage.seed,
        skip_invalid=stage.skip_invalid,
        cache=cache,
        references=texts,
    )


def prepare_stage(edited: EditedModel, stage: EditStage, around: Surroundings) -> Prepared:
    """Resolve the method's settings for the model, and load or compute its second moments."""
    with around.bar("second moment") as progress:
        ready = prepare(
            edited,
            method_named(stage.method),
            settings_of(stage, around),
            store=Store(around.cache / "moments"),
            corpus=stage.corpus,
            tokens=stage.tokens,
            progress=progress,
            say=around.warn,
        )
    for note in ready.warnings:
        around.warn(note)
    return ready


def settings_of(stage: EditStage, around: Surroundings) -> dict[str, Any]:
    """Return the settings of a stage, which override those of its hyperparameter file."""
    if stage.hparams is None:
        return dict(stage.settings)
    read = read_hparams(Path(stage.hparams), method_named(stage.method))
    if read.unused:
        around.warn(f"{stage.hparams}: not used here: {', '.join(read.unused)}")
    return method_named(stage.method).merged(read.settings, stage.settings)


def run_recipe(recipe: Recipe, around: Surroundings, *, again: bool = False) -> Outcome:
    """Run every unfinished stage; with `again`, run a finished recipe once more.

    Raises `ErrataError` for invalid datasets, models or settings, before the first stage where
    that is possible.
    """
    with _threads_for(recipe.model):
        return _run_recipe(recipe, around, again)


@contextmanager
def _threads_for(choice: ModelChoice) -> Iterator[None]:
    """Use one thread within the block for the demo model, which is too small to use more."""
    threads = torch.get_num_threads()
    try:
        if choice.name == "demo":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _run_recipe(recipe: Recipe, around: Surroundings, again: bool) -> Outcome:
    cases = load_all(recipe, around)
    edited = load_choice(recipe.model, to_edit=recipe.edits)
    params = {
        "recipe": recipe.model_dump(mode="json"),
        "model": edited.base.model_dump(),
        "patches": [patch.digest for patch in edited.patches],
        "cases": {name: cases_digest(loaded.cases) for name, loaded in cases.items()},
    }
    done = None if again else finished_run(around.results, "recipe", params)
    if done is not None:
        with reading_own(done / "summary.json"):
            return Outcome(done, dict(parse_json((done / "summary.json").read_text("utf-8"))), True)
    with run_folder(around.results, "recipe", params, around.command) as (folder, _):
        stages: dict[str, dict[str, Any]] = {}
        for name, stage in recipe.stages():
            path = folder / "stages" / f"{name}.json"
            found = _stored(path, edited, around.results) if path.exists() else None
            if found is None:
                found = _run_stage(recipe, edited, stage, cases.get(name), around)
                write_text(path, json.dumps(found, indent=1) + "\n")
            stages[name] = found
        heading = f"{folder.name}: {recipe.model.name}"
        write_results(folder, heading, sections(recipe, stages), stages, command=around.command)
    return Outcome(folder, stages)


def _stored(path: Path, edited: EditedModel, results: Path) -> dict[str, Any] | None:
    """Read the result of a finished stage and apply its patches; None if a file is missing."""
    with reading_own(path):
        found: dict[str, Any] = parse_json(path.read_text("utf-8"))
        patches = [results / name for name in found["patches"]]
    if "tuned" in found:
        return found if take_tuned(edited, results / str(found.get("run"))) else None
    if not all(patch.exists() for patch in patches):
        return None
    for patch in patches:
        edited.apply(load_edit(patch))
    return found


def _run_stage(
    recipe: Recipe, edited: EditedModel, stage: Stage, loaded: Loaded | None, around: Surroundings
) -> dict[str, Any]:
    if not isinstance(stage, CaseChoice):
        fresh = partial(load_choice, recipe.model)
        return tuning_stage(edited, stage, fresh, *around[:3], around.command)
    assert loaded is not None
    if isinstance(stage, EditStage):
        return _edit(edited, stage, recipe.plan(stage), loaded.cases, around)
    return _evaluate(edited, stage, loaded, around)


def _edit(
    edited: EditedModel,
    stage: EditStage,
    plan: EditPlan,
    cases: Sequence[Case],
    around: Surroundings,
) -> dict[str, Any]:
    ready = prepare_stage(edited, stage, around)
    with around.bar("edits") as progress:
        run = run_edits(
            edited,
            cases,
            ready.method,
            ready.moments,
            plan,
            around.results,
            command=around.command,
            progress=progress,
        )
    if run.advice is not None:
        around.warn(f"edit: {run.advice}")
    return {
        "run": str(run.folder.relative_to(around.results)),
        "patches": [str(path.relative_to(around.results)) for path in run.patches],
        "plan": run.plan_words,
        **run.findings,
        "summary": as_json(run.summary),
    }


def _evaluate(
    edited: EditedModel, stage: EvalStage, loaded: Loaded, around: Surroundings
) -> dict[str, Any]:
    source = {"name": stage.dataset or EDITED, "path": str(loaded.path), "limit": stage.limit}
    source |= {"offset": stage.offset, "seed": stage.seed, "skipped": len(loaded.skipped)}
    with around.bar("cases") as progress:
        found, folder = run_evaluation(
            edited,
            loaded.cases,
            asking_of(stage),
            around.results,
            source,
            around.command,
            progress,
        )
    run = str(folder.relative_to(around.results))
    return {"run": run, "patches": [], "plan": found.plan, "summary": found.as_json()}


def asking_of(stage: EvalStage) -> EvalSettings:
    """Return the settings of an evaluation stage."""
    return EvalSettings(
        generate=stage.generate,
        max_new_tokens=stage.max_new_tokens,
        seed=stage.seed or 0,
        template=stage.template,
        system=stage.system,
        controls=stage.controls,
    )
