"""Outcomes of edits: classes, flip rate, decay, and tests between configurations.

    Stable: worked → works        Erased: worked → fails
    Emergent: failed → works      Impossible: failed → fails
    flip rate = Erased / (Stable + Erased)        decay = (ES_edited - ES_tuned) / ES_edited

An edit works if the new target is likelier than the true one or, without a true target, if it is
the model's greedy prediction. With several seeds, each edit has one outcome per seed; intervals
resample edits, not outcomes, because the seeds of one edit are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from errata.core.errors import ErrataError
from errata.metrics.scores import Score, grouped_share, share

CLASSES = ("stable", "erased", "emergent", "impossible")
RESAMPLES = 2000

Outcomes = Sequence[Sequence[bool]]
"""Per edit, one outcome per seed."""


def class_of(before: bool, after: bool) -> str:
    """Return the class of one edit."""
    if before:
        return "stable" if after else "erased"
    return "emergent" if after else "impossible"


def class_shares(before: Outcomes, after: Outcomes) -> dict[str, Score]:
    """Return the share of each class, and `flip_rate` unless no edit worked before."""
    found = {}
    pairs = [list(zip(b, a, strict=True)) for b, a in zip(before, after, strict=True)]
    for name in CLASSES:
        score = grouped_share([[class_of(b, a) == name for b, a in edit] for edit in pairs])
        if score is not None:
            found[name] = score
    flips = grouped_share([[not a for b, a in edit if b] for edit in pairs])
    if flips is not None:
        found["flip_rate"] = flips
    return found


def decay(before: Sequence[float], after: Sequence[float]) -> Score | None:
    """Return (mean before - mean after) / mean before over edits; None if the mean before is 0.

    The interval is a percentile bootstrap over edits. If all edits have the same outcome, so that
    the bootstrap is degenerate, the interval is Wilson's.
    """
    then, now = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if not len(then) or then.mean() == 0:
        return None

    def lost(rows: np.ndarray) -> float:
        mean = then[rows].mean()
        return float((mean - now[rows].mean()) / mean) if mean else 0.0

    value, low, high = _resampled(lost, len(then))
    if low == high and value in (0.0, 1.0):
        alike = share([bool(value)] * len(then))
        assert alike is not None
        low, high = alike.low, alike.high
    return Score(value=value, low=low, high=high, n=len(then))


def _resampled(figure: Callable[[np.ndarray], float], count: int) -> tuple[float, float, float]:
    random = np.random.default_rng(0)
    found = [figure(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    value = figure(np.arange(count))
    return value, min(value, float(low)), max(value, float(high))


def require_statsmodels() -> None:
    """Raise `ErrataError` if statsmodels, used for significance tests, is not installed."""
    if find_spec("statsmodels") is None:
        raise ErrataError(
            "comparing configurations needs statsmodels, which is not installed",
            "pip install 'errata-lm[tune]'",
        )


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Return the two-sided p value of McNemar's exact test on paired binary outcomes."""
    require_statsmodels()
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    table = np.zeros((2, 2))
    for pair in zip(one, other, strict=True):
        table[int(pair[0]), int(pair[1])] += 1
    return float(exact_test(table, exact=True).pvalue)


def paired_bootstrap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p value of a paired bootstrap test on the mean difference."""
    difference = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    random, count = np.random.default_rng(0), len(difference)
    means = [difference[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    below, above = float(np.mean(np.array(means) <= 0)), float(np.mean(np.array(means) >= 0))
    return min(1.0, 2 * max(min(below, above), 1 / RESAMPLES))


def paired_test(one: Outcomes, other: Outcomes) -> tuple[str, float]:
    """Test whether equally many edits work in two configurations; return test name and p value.

    McNemar's exact test for one seed, otherwise a paired bootstrap over the edits' means.
    """
    if all(len(edit) == 1 for edit in (*one, *other)):
        return "exact McNemar", mcnemar([e[0] for e in one], [e[0] for e in other])
    means = [[sum(edit) / len(edit) for edit in some] for some in (one, other)]
    return "paired bootstrap over edits", paired_bootstrap(*means)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values adjusted for multiple comparisons by Holm's method (1979)."""
    if not values:
        return []
    require_statsmodels()
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(values, method="holm")[1]]
