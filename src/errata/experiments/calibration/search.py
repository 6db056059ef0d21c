"""The search over settings by Optuna's multi-objective TPE sampler (the extra `calibrate`).

The study is kept in the run folder as a journal, so that an interrupted search resumes. Trials
come in groups that share a target search: the first of a group samples every dial, the others
only the cheap ones. The sampler of a trial is seeded by its number, so that a resumed search
proposes what an uninterrupted one does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core.errors import ErrataError
from errata.core.progress import Progress, no_progress
from errata.experiments.calibration.choice import Trial, values_of
from errata.experiments.calibration.measure import Measured
from errata.experiments.calibration.settings import Calibration
from errata.experiments.calibration.space import Point, Space
from errata.experiments.parts import Parts, json_format
from errata.methods import Method
from errata.methods.search_space import Dial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked

STUDY = "calibration"
JOURNAL = "optuna.journal"
RANDOM_GROUPS = 2
"""Groups of trials that are sampled at random before the sampler models what works."""


def require_optuna() -> None:
    """Raise `ErrataError` unless the extra is installed."""
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ErrataError(
            "calibration needs an extra that is not installed",
            "pip install 'errata-lm[calibrate]'",
        )


def search(
    space: Space,
    settings: Calibration,
    measure: Callable[[Method], Measured],
    folder: Path,
    objectives: int,
    progress: Progress = no_progress,
) -> list[Trial]:
    """Try settings and return every trial; those of an interrupted search are read from `folder`.

    `objectives` is the number of scores to maximise; the drift comes last and is minimised.
    """
    parts = Parts[dict[str, Any]](folder / "trials", json_format())
    trials: list[Trial] = []
    with quiet():
        study = _study(folder, objectives)
        _forget_interrupted(study)
        done = _finished(study)
        for number in range(settings.trials):
            asked = None if number < len(done) else _asked(study, space, settings, trials)
            point = dict(done[number].params if asked is None else asked.params)
            found = parts.one(f"{number:04d}", partial(_tried, space, point, trials, measure))
            trials.append(_trial(number, point, found))
            if asked is not None:
                _tell(study, asked, trials[-1])
            progress(number + 1, settings.trials)
    return trials


def _tried(
    space: Space, point: Point, trials: Sequence[Trial], measure: Callable[[Method], Measured]
) -> dict[str, Any]:
    """Return what settings did, or why they cannot be used, as JSON values.

    Settings that an earlier trial tried are not tried again.
    """
    for trial in trials:
        if trial.point == point:
            return trial.as_json()
    try:
        return measure(space.method(point)).as_json()
    except ErrataError as error:
        return {"error": error.message}


def _trial(number: int, point: Point, found: dict[str, Any]) -> Trial:
    if found.get("error") is not None:
        return Trial(number, dict(point), None, str(found["error"]))
    return Trial(number, dict(point), Measured.of(found))


def _study(folder: Path, objectives: int) -> Study:
    """Open or create the study in the run folder, whose lock this process holds."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.study import StudyDirection

    path = folder / JOURNAL
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)  # left by a killed process
    backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
    return optuna.create_study(
        study_name=STUDY,
        storage=JournalStorage(backend),
        directions=[StudyDirection.MAXIMIZE] * objectives + [StudyDirection.MINIMIZE],
        load_if_exists=True,
    )


def _asked(study: Study, space: Space, settings: Calibration, trials: Sequence[Trial]) -> Asked:
    """Ask for the next point; the first one is that of the base settings."""
    from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler

    number, per_search = len(trials), space.per_search(settings.per_search)
    seed, startup = settings.sampler_seed + number, RANDOM_GROUPS * per_search
    sampler: BaseSampler = TPESampler(seed=seed, n_startup_trials=startup)
    if number % per_search:
        first, cheap = trials[number - number % per_search].point, space.cheap
        fixed = {name: value for name, value in first.items() if name not in cheap}
        sampler = PartialFixedSampler(fixed, sampler)
    study.sampler = sampler
    if number == 0:
        study.enqueue_trial(space.start)
    asked = study.ask()
    for dial in space.dials:
        _suggest(asked, dial)
    return asked


def _suggest(asked: Asked, dial: Dial) -> None:
    if dial.kind == "choice":
        asked.suggest_categorical(dial.name, dial.choices)
    else:
        asked.suggest_float(dial.name, dial.low, dial.high, log=dial.kind == "log")


def _tell(study: Study, asked: Asked, trial: Trial) -> None:
    from optuna.trial import TrialState

    if trial.measured is None:
        asked.set_user_attr("error", trial.error)
        study.tell(asked, state=TrialState.FAIL)
        return
    *scores, drift = values_of(trial.measured)
    study.tell(asked, [*scores, -drift])


def _finished(study: Study) -> list[FrozenTrial]:
    """Return the trials with a result, failed ones included."""
    from optuna.trial import TrialState

    return [
        each
        for each in study.get_trials(deepcopy=False)
        if each.state == TrialState.COMPLETE or "error" in each.user_attrs
    ]


def _forget_interrupted(study: Study) -> None:
    """End the trials that a killed process left open; their points are proposed again."""
    from optuna.trial import TrialState

    for each in study.get_trials(deepcopy=False):
        if each.state in (TrialState.RUNNING, TrialState.WAITING):
            if each.state == TrialState.WAITING:
                study.ask()
            study.tell(each.number, state=TrialState.FAIL)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log and its warnings of experimental parts within the block."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
