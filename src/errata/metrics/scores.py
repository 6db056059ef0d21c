"""Reports: scores with 95 % confidence intervals, as JSON and Markdown.

A score is {value, low, high, n}, shares from 0 to 1. Shares of yes/no outcomes get Wilson
intervals, means of other numbers a percentile bootstrap with a fixed seed. Prompts of one
case share its fate: the grouped forms average within a case first and widen the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errata.core.settings import Settings

Array = NDArray[np.float64]

_Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


class Score(Settings):
    """A figure with its 95 % confidence interval and the number of things it was taken over."""

    value: float
    """The figure."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """How many outcomes it is the mean of."""

    @property
    def alone(self) -> bool:
        """Whether it is the mean of one number, and its interval only that number again."""
        return self.n == 1 and self.low == self.high

    def as_json(self) -> dict[str, Any]:
        """Return {value, low, high, n}, without the ends of an interval that says nothing."""
        return self.model_dump() | ({"low": None, "high": None} if self.alone else {})

    def __str__(self) -> str:
        value, low, high = (f"{100 * x:z.1f}" for x in (self.value, self.low, self.high))
        return f"{value} %" + ("" if self.alone else f" [{low}, {high}]") + f" n={self.n}"


class Amount(Score):
    """A figure that is no share: a perplexity, an entropy in bits."""

    def __str__(self) -> str:
        return f"{self.value:z.3g} [{self.low:z.3g}, {self.high:z.3g}] n={self.n}"


AMOUNTS = ("fluency", "essence_perplexity")
"""Figures that are no shares."""


def named(name: str, score: Score) -> Score:
    """Return a score in the form that the figure of this name has."""
    return Amount(**score.model_dump()) if name in AMOUNTS else score


def read_scores(summary: Mapping[str, Mapping[str, float]]) -> dict[str, Score]:
    """Return scores by name from what `summary.json` holds, those under `before` left out."""
    found = {n: Score.model_validate(s) for n, s in summary.items() if n != "before"}
    return {name: named(name, score) for name, score in found.items()}


def share(outcomes: Sequence[bool]) -> Score | None:
    """Return the share of true outcomes with its Wilson interval; None when there are none."""
    n = len(outcomes)
    return _wilson(sum(outcomes) / n, n, n) if n else None


def _wilson(p: float, size: float, n: int) -> Score:
    """Return Wilson's interval around a share `p` of `size` independent outcomes."""
    middle = (p + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * math.sqrt(p * (1 - p) / size + _Z**2 / (4 * size**2))
    return Score(
        value=p, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)), n=n
    )


def mean(values: Sequence[float], resamples: int = 2000) -> Score | None:
    """Return the mean with a percentile bootstrap interval; None when there are no values."""
    if not values:
        return None
    data = np.asarray(values, dtype=float)
    low, high = intervals(data, resamples)
    return Score(value=float(data.mean()), low=float(low), high=float(high), n=len(data))


def intervals(data: NDArray[Any], resamples: int = 2000) -> tuple[Array, Array]:
    """Return the ends of percentile bootstrap intervals of means over the first axis.

    `data` is (n, …), both ends are (…); what is drawn is the same for all and for every call.
    """
    data, count = np.asarray(data, dtype=float), len(data)
    if count == 1:
        return data[0], data[0]
    random = np.random.default_rng(0)
    means = [data[random.integers(0, count, count)].mean(0) for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def grouped_share(groups: Sequence[Sequence[bool]]) -> Score | None:
    """Return the mean over groups of each group's share; None when there are no outcomes.

    Outcomes of one group (the neighbours of one case) are not independent, so Wilson's
    interval is taken at the effective sample size p(1-p) / variance over groups (Korn and
    Graubard 1998), which lies between the number of groups and that of outcomes.
    """
    groups = [group for group in groups if group]
    if not groups:
        return None
    count, total = len(groups), sum(map(len, groups))
    if count == total:
        return share([outcome for group in groups for outcome in group])
    means = np.array([sum(group) / len(group) for group in groups])
    p, effective = float(means.mean()), float(count)
    if count > 1 and (variance := float(means.var(ddof=1)) / count) > 0:
        effective = min(max(p * (1 - p) / variance, count), total)
    return _wilson(p, effective, total)


def grouped_mean(groups: Sequence[Sequence[float]]) -> Score | None:
    """Return the mean over groups of each group's mean, groups resampled as wholes."""
    groups = [group for group in groups if group]
    score = mean([sum(group) / len(group) for group in groups])
    return None if score is None else score.with_values(n=sum(map(len, groups)))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of numbers that are not negative: 0 when one of them is 0."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)
