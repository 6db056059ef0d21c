"""Wilson's interval against published values (Newcombe 1998, Statistics in Medicine 17:857)."""

from __future__ import annotations

import numpy as np
import pytest

from errata.metrics.scores import intervals, mean, share
from errata.reports.tables import markdown_table

PUBLISHED = {
    (81, 263): (0.2553, 0.3662),
    (15, 148): (0.0624, 0.1605),
    (0, 20): (0.0, 0.1611),
    (1, 29): (0.0061, 0.1718),
}


@pytest.mark.parametrize(("hits", "n"), PUBLISHED)
def test_wilson_is_as_published(hits: int, n: int) -> None:
    score = share([True] * hits + [False] * (n - hits))
    assert score is not None
    assert (score.value, score.n) == (hits / n, n)
    assert (score.low, score.high) == pytest.approx(PUBLISHED[hits, n], abs=5e-5)
    mirrored = share([False] * hits + [True] * (n - hits))
    assert mirrored is not None
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((score.low, score.high))


def test_scores_read_as_percent() -> None:
    assert str(share([True, True, False, True])) == "75.0 % [30.1, 95.4] n=4"


def test_a_mean_has_the_same_interval_every_time() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    score = mean(values)
    assert score is not None
    assert score == mean(values)
    assert score.low < score.value < score.high
    assert score.value == pytest.approx(0.38)


@pytest.mark.parametrize("shape", [(2,), (9,), (300,), (20_000,), (40, 3, 5), (7, 4000)])
def test_resamples_drawn_together_are_those_drawn_one_by_one(shape: tuple[int, ...]) -> None:
    data, resamples = np.random.default_rng(3).lognormal(size=shape), 31
    random, count = np.random.default_rng(0), len(data)
    means = [data[random.integers(0, count, count)].mean(0) for _ in range(resamples)]
    expected = np.percentile(means, [2.5, 97.5], axis=0)
    assert np.array_equal(intervals(data, resamples), expected)


def test_a_cell_cannot_break_its_table() -> None:
    assert markdown_table(("a", "b"), [("x|y", "z")]) == "| a | b |\n|---|---|\n| x\\|y | z |"
