"""Scores with 95 % confidence intervals.

A score is {value, low, high, n}, shares from 0 to 1. Shares of yes/no outcomes get Wilson
intervals, means of other numbers a percentile bootstrap with a fixed seed. Prompts of one case
are not independent: the grouped forms average within a case first and widen the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errata.core.settings import Settings

Array = NDArray[np.float64]

Z95 = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""


class Score(Settings):
    """A share from 0 to 1 with its 95 % confidence interval and the number of outcomes."""

    value: float
    """The point estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of outcomes."""

    @property
    def alone(self) -> bool:
        """Whether it is a single number, whose interval is empty."""
        return self.n == 1 and self.low == self.high

    def as_json(self) -> dict[str, Any]:
        """Return {value, low, high, n}, with None for the ends of an empty interval."""
        return self.model_dump() | ({"low": None, "high": None} if self.alone else {})

    def short(self) -> str:
        """Return the value and its interval without unit and `n`, as in `75.0 [30.1, 95.4]`."""
        value, low, high = (f"{100 * x:z.1f}" for x in (self.value, self.low, self.high))
        return value if self.alone else f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        value, space, interval = self.short().partition(" ")
        return f"{value} %{space}{interval} n={self.n}"


class Amount(Score):
    """A number that is not a share: a perplexity, an entropy in bits."""

    def short(self) -> str:
        """Return the value and its interval without `n`, as in `5.82 [5.72, 5.89]`."""
        return f"{self.value:z.3g} [{self.low:z.3g}, {self.high:z.3g}]"

    def __str__(self) -> str:
        return f"{self.short()} n={self.n}"


def plain_scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return scores by name as JSON values."""
    return {name: score.model_dump() for name, score in scores.items()}


def before_after_json(
    before: Mapping[str, Score] | None,
    after: Mapping[str, Score],
    in_prompt: Mapping[str, Score] | None = None,
) -> dict[str, Any]:
    """Return the scores after editing by name, others under `before` and `in_prompt` if given.

    `in_prompt` are those of the unedited model with the fact in the prompt.
    """
    others = {"before": before, "in_prompt": in_prompt}
    given = {name: plain_scores(scores) for name, scores in others.items() if scores is not None}
    return plain_scores(after) | given


def share(outcomes: Sequence[bool]) -> Score | None:
    """Return the share of true outcomes with its Wilson interval; None without outcomes."""
    n = len(outcomes)
    return _wilson(sum(outcomes) / n, n, n) if n else None


def _wilson(p: float, size: float, n: int) -> Score:
    """Return Wilson's interval around a share `p` of `size` independent outcomes."""
    middle = (p + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 / (1 + Z95**2 / size) * math.sqrt(p * (1 - p) / size + Z95**2 / (4 * size**2))
    return Score(
        value=p, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)), n=n
    )


def mean(values: Sequence[float], resamples: int = 2000) -> Score | None:
    """Return the mean with a percentile bootstrap interval; None without values."""
    if not values:
        return None
    data = np.asarray(values, dtype=float)
    low, high = intervals(data, resamples)
    return Score(value=float(data.mean()), low=float(low), high=float(high), n=len(data))


def intervals(data: NDArray[Any], resamples: int = 2000) -> tuple[Array, Array]:
    """Return the ends of percentile bootstrap intervals of means over the first axis.

    `data` is (n, …), both ends are (…); all elements and all calls use the same resamples.
    """
    data, count = np.asarray(data, dtype=float), len(data)
    if count == 1:
        return data[0], data[0]
    random = np.random.default_rng(0)
    at_once = max(1, 2**14 // (data.size or 1))  # the same resamples, whatever their number at once
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = [data[random.integers(0, count, (size, count))].mean(1) for size in sizes]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return low, high


def grouped_share(groups: Sequence[Sequence[bool]]) -> Score | None:
    """Return the mean over groups of each group's share; None without outcomes.

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
    """Return the mean over groups of each group's mean; whole groups are resampled."""
    groups = [group for group in groups if group]
    score = mean([sum(group) / len(group) for group in groups])
    return None if score is None else score.with_values(n=sum(map(len, groups)))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of non-negative numbers: 0 if one of them is 0."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)
