"""The Pareto front of the trials, and the point that is chosen from it (see `settings.RULE`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from errata.experiments.calibration.measure import Measured
from errata.experiments.calibration.settings import FLOOR, TIE


class Trial(NamedTuple):
    """One choice of settings and what it did."""

    number: int
    point: dict[str, Any]
    """The values of the dials."""
    measured: Measured | None
    error: str | None = None
    """Why there is no result: the settings do not fit this model, or the search diverged."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        found = {"number": self.number, "point": self.point, "error": self.error}
        return found | ({} if self.measured is None else self.measured.as_json())


def values_of(measured: Measured) -> list[float]:
    """Return what the optimiser maximises: the objectives, and minus the drift."""
    return [*measured.objectives().values(), -measured.drift]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one point is at least as good in every objective and better in one."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other one dominates."""
    scored = [(trial, values_of(trial.measured)) for trial in trials if trial.measured is not None]
    return [
        trial
        for trial, values in scored
        if not any(dominates(other, values) for _, other in scored)
    ]


def chosen(front: Sequence[Trial]) -> Trial:
    """Return the point of the front that `RULE` picks."""
    found = [(trial, trial.measured) for trial in front if trial.measured is not None]
    efficacy = {trial.number: m.objectives().get("efficacy", 0.0) for trial, m in found}
    needed = min(FLOOR, max(efficacy.values()))
    fit = [(trial, m) for trial, m in found if efficacy[trial.number] >= needed]
    best = max(m.merit for _, m in fit)
    tied = [(trial, m) for trial, m in fit if m.merit >= best - TIE]
    return min(tied, key=lambda pair: (pair[1].drift, -pair[1].merit))[0]
