"""Reports: scores with 95 % confidence intervals, as JSON and Markdown.

A score is {value (0-1), low, high, n}. Shares of yes/no outcomes get Wilson intervals,
means of other numbers a percentile bootstrap with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from errata.settings import Settings

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

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}"


def share(outcomes: Sequence[bool]) -> Score | None:
    """Return the share of true outcomes with its Wilson interval; None when there are none."""
    n = len(outcomes)
    if n == 0:
        return None
    p = sum(outcomes) / n
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Score(
        value=p, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)), n=n
    )


def mean(values: Sequence[float], resamples: int = 2000) -> Score | None:
    """Return the mean with a percentile bootstrap interval; None when there are no values."""
    if not values:
        return None
    data = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(0, len(data), size=(resamples, len(data)))
    low, high = np.percentile(data[draws].mean(axis=1), [2.5, 97.5])
    return Score(value=float(data.mean()), low=float(low), high=float(high), n=len(data))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def score_rows(before: Mapping[str, Score], after: Mapping[str, Score]) -> list[list[str]]:
    """Return table rows: what was scored, before, after."""
    return [[name, str(before.get(name, "-")), str(after.get(name, "-"))] for name in after]
