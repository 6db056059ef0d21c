"""Intervals: Wilson's for shares, wider where outcomes come in groups, never a point at 100 %."""

from __future__ import annotations

import numpy as np
import pytest

from errata.metrics.scores import (
    Amount,
    Score,
    grouped_mean,
    grouped_share,
    harmonic_mean,
    mean,
    share,
)


def test_wilson_by_hand() -> None:
    score = share([True] * 8 + [False] * 2)
    assert score is not None
    assert score.value == 0.8
    assert score.low == pytest.approx(0.4902, abs=1e-4)
    assert score.high == pytest.approx(0.9433, abs=1e-4)
    assert score.n == 10


def test_nothing_has_no_score() -> None:
    assert share([]) is None
    assert mean([]) is None
    assert grouped_share([[], []]) is None
    assert grouped_mean([[]]) is None


def test_groups_of_one_are_plain_outcomes() -> None:
    outcomes = [True, False, True, True]
    assert grouped_share([[outcome] for outcome in outcomes]) == share(outcomes)
    assert grouped_mean([[1.0], [4.0]]) == mean([1.0, 4.0])


def test_groups_are_averaged_before_they_are_averaged() -> None:
    score = grouped_share([[True], [False] * 9])
    assert score is not None
    assert score.value == 0.5
    assert score.n == 10
    amount = grouped_mean([[1.0], [3.0, 5.0]])
    assert amount is not None
    assert (amount.value, amount.n) == (2.5, 3)


def test_outcomes_that_agree_within_groups_count_as_one() -> None:
    groups = [[i % 2 == 0] * 10 for i in range(20)]
    alike, apart = grouped_share(groups), share([g[0] for g in groups])
    assert alike is not None
    assert apart is not None
    assert (alike.low, alike.high) == pytest.approx((apart.low, apart.high), abs=0.01)


def test_certainty_is_no_point() -> None:
    for score in (share([True] * 5), grouped_share([[True] * 10] * 5)):
        assert score is not None
        assert score.value == score.high == 1.0
        assert score.low < 0.6


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_hold_the_truth_as_often_as_they_say(spread: float) -> None:
    """Cases whose prompts share a fate: 95 % of the intervals hold the share behind the draws."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        rates = np.clip(0.7 + spread * random.standard_normal(60).clip(-1, 1), 0, 1)
        score = grouped_share([list(random.random(8) < rate) for rate in rates])
        assert score is not None
        held += score.low <= 0.7 <= score.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_harmonic_mean_is_led_by_the_least() -> None:
    assert harmonic_mean([1.0, 1.0, 0.0]) == 0.0
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)


def test_a_score_reads_as_percent() -> None:
    assert str(Score(value=0.5, low=0.25, high=0.75, n=4)) == "50.0 % [25.0, 75.0] n=4"


def test_the_short_form_has_neither_unit_nor_count() -> None:
    score = Score(value=0.5, low=0.25, high=0.75, n=4)
    assert score.short() == "50.0 [25.0, 75.0]"
    assert Score(value=0.5, low=0.5, high=0.5, n=1).short() == "50.0"
    assert str(Score(value=0.5, low=0.5, high=0.5, n=1)) == "50.0 % n=1"
    assert Amount(value=5.8211, low=5.72, high=5.89, n=3).short() == "5.82 [5.72, 5.89]"


def test_nothing_is_less_than_nothing() -> None:
    """A difference that rounds to zero has no sign."""
    score = Score(value=-0.0001, low=-0.0004, high=-0.0, n=3)
    assert str(score) == "0.0 % [0.0, 0.0] n=3"
    assert str(Score(value=-0.0005, low=-0.02, high=0.0004, n=3)) == "-0.1 % [-2.0, 0.0] n=3"
    assert str(Amount(value=-0.0, low=-1.5, high=0.0, n=3)) == "0 [-1.5, 0] n=3"
