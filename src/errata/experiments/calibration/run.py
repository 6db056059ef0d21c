"""A calibration: candidate blocks, a search over settings, held-out scores, and a preset.

    results/calibrate/run_<NNN>/  params.json summary.json report.md preset.json trade_off.png
        optuna.journal trials/<N>.json shared/*.safetensors sweep/ candidates.json held_out.json

Each stage stores its result, so an interrupted calibration resumes at the first missing one. The
preset is put into the user's folder when the run is finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError
from errata.data.case import Case, cases_digest
from errata.data.corpus import read_corpus
from errata.experiments.calibration.candidates import candidate_blocks
from errata.experiments.calibration.choice import Trial, chosen, pareto_front
from errata.experiments.calibration.facts import Facts
from errata.experiments.calibration.measure import Bench, objectives
from errata.experiments.calibration.preset import preset_of
from errata.experiments.calibration.report import write_report
from errata.experiments.calibration.search import require_optuna, search
from errata.experiments.calibration.settings import Calibration
from errata.experiments.calibration.space import Space, blocks_needed, space_of
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.experiments.fact_editing import Feedback
from errata.experiments.parts import Parts, json_format
from errata.experiments.run_folder import run_folder
from errata.methods import Method
from errata.methods.moments import moments_for
from errata.methods.preset_files import PresetFile
from errata.metrics.scores import Score, before_after_json
from errata.metrics.text_drift import LENGTH, TEXTS, TextDrift
from errata.models.generation import free_texts
from errata.patches.edited_model import EditedModel
from errata.statistics.second_moment import SecondMoment
from errata.statistics.store import Store

LABEL = "calibrate"
OPENINGS = ("The", "In", "She", "However,", "This", "One of", "A", "When")
"""Beginnings of the texts that are sampled from the model to measure the drift on."""


@dataclass(frozen=True)
class Choices:
    """What is calibrated: the method with its settings for the model, and what is fixed."""

    base: Method
    """The method with the settings that the search starts from."""
    fixed: Mapping[str, Any]
    """Nested settings that are not searched."""
    plan: EditPlan
    calibration: Calibration
    text: str | None = None
    """The corpus on which the drift is measured; None: texts sampled from the model."""
    corpus: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration."""

    folder: Path
    preset: PresetFile
    trials: list[Trial]
    front: list[Trial]
    best: Trial
    facts: Facts
    before: dict[str, Score]
    """Scores on the held-out facts before editing."""
    after: dict[str, Score]
    """Scores on the held-out facts, edited with the settings that were chosen."""

    def as_json(self) -> dict[str, Any]:
        """Return what `errata calibrate --json` prints, without the model and the paths."""
        return {
            "method": self.preset.method,
            "settings": self.preset.settings,
            "scale_free": self.preset.scale_free,
            "facts": {
                "dataset": self.facts.dataset,
                "chosen_on": len(self.facts.chosen_on),
                "held_out": len(self.facts.held_out),
                "dropped": list(self.facts.dropped),
            },
            "chosen": self.best.number,
            "front": [trial.number for trial in self.front],
            "trials": [trial.as_json() for trial in self.trials],
            "held_out": before_after_json(self.before, self.after),
        }


def calibrate(
    edited: EditedModel,
    facts: Facts,
    choices: Choices,
    results: Path,
    feedback: Feedback,
    *,
    store: Store | None = None,
    command: str | None = None,
) -> Calibrated:
    """Find settings for a method and a model; the run is stored under `results`.

    Raises `ErrataError` where second moments are missing, and if no settings work.
    """
    require_optuna()
    texts = drift_texts(edited, choices)
    params = _params(edited, facts, choices, texts)
    with run_folder(results, LABEL, params, command) as (folder, _):
        candidates = candidate_blocks(edited, facts.chosen_on, choices, folder, feedback)
        needed = blocks_needed(choices.base, candidates)
        moments = _moments(edited, choices, needed, store, feedback)
        base = choices.base.sampled(edited)
        space = space_of(base, choices.fixed, candidates, moments)
        bench = Bench(
            *(edited, facts.chosen_on, moments, choices.plan),
            TextDrift.of(edited, texts),
            folder / "shared",
        )
        trials = _searched(space, bench, choices, folder, feedback)
        front = pareto_front(trials)
        best = chosen(front)
        method = space.method(best.point)
        before, after = _held_out(edited, facts, method, moments, choices, folder, feedback)
        preset = preset_of(edited, choices, best, method, facts, before, after, command)
        preset.save(folder / "preset.json")
        found = Calibrated(folder, preset, trials, front, best, facts, before, after)
        write_report(found, space, command)
        shutil.rmtree(folder / "shared", ignore_errors=True)
    return found


def drift_texts(edited: EditedModel, choices: Choices) -> list[str]:
    """Return the texts on which the drift is measured: a corpus, or samples from the model."""
    name = choices.text or choices.corpus or ("demo" if edited.name == "demo" else None)
    if name is None:
        openings = (OPENINGS * TEXTS)[:TEXTS]
        return free_texts(edited.model, edited.tokenizer, openings, LENGTH, top_k=50)
    found: list[str] = []
    for text in read_corpus(name).texts:
        found.append(text[: 20 * LENGTH])
        if len(found) == 20 * TEXTS:
            break
    return sorted(found, key=lambda text: -min(len(text.split()), LENGTH))[:TEXTS]


def _params(
    edited: EditedModel, facts: Facts, choices: Choices, texts: Sequence[str]
) -> dict[str, Any]:
    return {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "parents": [patch.digest for patch in edited.patches],
        "method": choices.base.name,
        "settings": choices.base.model_dump(mode="json"),
        "fixed": dict(choices.fixed),
        "plan": choices.plan.model_dump(),
        "calibration": choices.calibration.model_dump(),
        "corpus": choices.corpus,
        "tokens": choices.tokens,
        "texts": list(texts),
        "cases": [case.id for case in (*facts.chosen_on, *facts.held_out)],
        "cases_digest": [cases_digest(facts.chosen_on), cases_digest(facts.held_out)],
    }


def _moments(
    edited: EditedModel,
    choices: Choices,
    blocks: Sequence[int],
    store: Store | None,
    feedback: Feedback,
) -> Mapping[int, SecondMoment]:
    with feedback.bar("second moment", "tokens") as progress:
        moments, lines = moments_for(
            edited,
            choices.base,
            store,
            choices.corpus,
            choices.tokens,
            progress,
            feedback.say,
            blocks=blocks,
        )
    for line in lines:
        feedback.say(line)
    return moments


def _searched(
    space: Space, bench: Bench, choices: Choices, folder: Path, feedback: Feedback
) -> list[Trial]:
    """Return the trials; raises `ErrataError` if none of them has a result."""
    count = len(objectives(_kinds(bench.cases)))
    with feedback.bar("trials", "") as progress:
        trials = search(space, choices.calibration, bench.measure, folder, count, progress)
    if all(trial.measured is None for trial in trials):
        raise ErrataError(
            f"no settings work: {trials[0].error}",
            "fix the settings that are at fault with flags, or measure second moments on more "
            "tokens",
        )
    return trials


def _kinds(cases: Sequence[Case]) -> dict[str, Score]:
    """Return a score for each kind of prompt that the cases have, to count the objectives."""
    one = Score(value=1.0, low=1.0, high=1.0, n=1)
    kinds = {"efficacy": True, "paraphrase": any(case.paraphrases for case in cases)}
    kinds["neighbourhood"] = any(
        case.neighbours and (case.target_true or case.neighbour_answers) for case in cases
    )
    return {kind: one for kind, there in kinds.items() if there}


def _held_out(
    edited: EditedModel,
    facts: Facts,
    method: Method,
    moments: Mapping[int, SecondMoment],
    choices: Choices,
    folder: Path,
    feedback: Feedback,
) -> tuple[dict[str, Score], dict[str, Score]]:
    """Edit the held-out facts as an ordinary run; return the scores before and after."""
    place, count = folder / "held_out", len(edited.patches)

    def work() -> dict[str, Any]:
        try:
            with feedback.bar("held-out facts", "") as progress:
                run = run_edits(
                    edited, facts.held_out, method, moments, choices.plan, place, progress=progress
                )
        finally:
            while len(edited.patches) > count:
                edited.undo()
        return {h: {n: s.model_dump() for n, s in run.summary[h].items()} for h in _HALVES}

    found = Parts[dict[str, Any]](folder, json_format()).one("held_out", work)
    shutil.rmtree(place, ignore_errors=True)
    before, after = ({n: Score.of(s) for n, s in found[half].items()} for half in _HALVES)
    return before, after


_HALVES = ("before", "after")
