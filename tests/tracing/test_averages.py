"""Averages of traces: roles, effects, intervals, and the blocks that they recommend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from errata.core.errors import ErrataError
from errata.metrics.scores import intervals, mean, share
from errata.tracing.averages import (
    LAST,
    LAST_SUBJECT,
    ROLES,
    average,
    nothing_lost,
    recommend,
    role_of,
)
from errata.tracing.settings import TRACE_KINDS, TraceSettings, window_around
from errata.tracing.trace import Trace


def made(
    scores: np.ndarray, subject: tuple[int, int], *, low: float = 0.1, kind: str = "mlp"
) -> Trace:
    """A trace with given mean scores (tokens, blocks), the same in both of its samples."""
    held = np.stack([scores - 0.01, scores + 0.01], axis=-1).astype(np.float32)
    tokens = tuple(f"t{i}" for i in range(len(scores)))
    lows = np.full(2, low, np.float32)
    places = tuple(range(len(scores)))
    return Trace("text", tokens, subject, "a", "a", places, 3, 0.5, {kind: held}, lows, 0.9)


def test_every_token_has_one_role() -> None:
    roles = [role_of(token, (2, 5), 9) for token in range(9)]
    assert roles == [None, None, ROLES[0], ROLES[1], ROLES[2], ROLES[3], ROLES[4], ROLES[4], LAST]
    assert [role_of(token, (0, 1), 2) for token in range(2)] == [LAST_SUBJECT, LAST]
    assert [role_of(token, (0, 2), 2) for token in range(2)] == [ROLES[0], LAST_SUBJECT]


def test_effects_are_averaged_over_tokens_then_facts() -> None:
    first = np.full((7, 2), 0.1)
    first[1], first[2] = 0.3, 0.5  # two middle tokens of the subject, effects .2 and .4
    second = np.full((4, 2), 0.1)
    second[1] = 0.7  # one, .6
    averages = average([made(first, (0, 4)), made(second, (0, 3))])
    middle = averages.effects["mlp"]["middle subject tokens"]
    assert [score.value for score in middle] == pytest.approx([0.45, 0.45])
    assert all(score.low < score.value < score.high and score.n == 2 for score in middle)
    last = averages.effects["mlp"][LAST]
    assert [score.value for score in last] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert ROLES[4] not in average([made(second, (0, 3))]).effects["mlp"]
    assert averages.total == pytest.approx(0.8)
    assert averages.values("mlp").shape == (6, 2)
    assert set(averages.as_json()["effects"]["mlp"][LAST][0]) == {"value", "low", "high", "n"}


def test_intervals_are_those_of_each_mean() -> None:
    data = np.random.default_rng(1).random((9, 2, 3))
    lows, highs = intervals(data)
    for i in range(2):
        for j in range(3):
            score = mean(list(data[:, i, j]))
            assert score is not None
            assert (lows[i, j], highs[i, j]) == pytest.approx((score.low, score.high))


def test_the_peak_is_recommended_with_its_evidence() -> None:
    source, traces = np.random.default_rng(0), []
    for _ in range(20):
        scores = np.full((4, 8), 0.1)
        scores[1] += np.array([0.1, 0.2, 0.5, 0.49, 0.2, 0.1, 0, 0]) + source.normal(0, 0.05, 8)
        traces.append(made(scores, (0, 2)))
    found = recommend(traces)
    assert found is not None and found.share is not None
    assert (found.peak, found.blocks, found.window) == (2, (1, 2, 3), 3)
    assert set(found.rivals) <= {3} and 0.3 < found.share <= 1 - sum(found.rivals.values())
    assert "around block 2" in found.evidence
    with pytest.raises(ErrataError, match="MLPs"):
        recommend([made(scores, (0, 2), kind="hidden")])


def test_nothing_is_located_where_corruption_did_not_hurt() -> None:
    scores = np.full((4, 8), 0.5)
    scores[1, 3] = 0.8
    harmless = made(scores, (0, 2), low=0.91)
    assert "0.900 clean, 0.910 corrupted" in str(nothing_lost([harmless]))
    assert recommend([harmless]) is None and recommend([harmless] * 9) is None
    noisy = replace(harmless, low=np.array([0.2, 0.95, 0.97, 0.96], np.float32))
    assert noisy.total_effect > 0 and recommend([noisy]) is None  # by one draw of four
    hurt = replace(harmless, low=np.array([0.2, 0.3, 0.4, 0.3], np.float32))
    assert nothing_lost([hurt]) is None and recommend([hurt]) is not None
    odd = [hurt, *[harmless] * 9]
    assert average(odd).total > 0 and "-0.0" in str(nothing_lost(odd)) and recommend(odd) is None


def test_one_fact_has_no_interval_and_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.full((4, 8), 0.1)
    scores[1, 3] = 0.5
    lone = replace(made(scores, (0, 2)), scores={"mlp": scores[..., None]}, low=np.array([0.1]))
    monkeypatch.setattr("numpy.random.default_rng", None)
    found = recommend([lone])
    assert found is not None and found.peak == 3 and found.facts == 1
    assert "resampled" not in found.evidence and "[" not in found.evidence
    told = found.as_json()
    assert told["share"] is None and told["rivals"] == {}
    score = {"value": pytest.approx(0.4), "low": None, "high": None, "n": 1}
    assert told["effect"] == score
    json = average([lone]).as_json()
    assert json["effects"]["mlp"][LAST_SUBJECT][3] == score
    assert lone.as_json()["scores"]["mlp"][1][3] == {**score, "value": 0.5}
    assert str(average([lone]).effects["mlp"][LAST_SUBJECT][3]) == "40.0 % n=1"
    assert "[" in str(share([True]))  # an interval of one outcome does say something


def test_there_is_something_to_average() -> None:
    with pytest.raises(ErrataError, match="no fact"):
        average([])


@pytest.mark.parametrize(
    ("blocks", "window"), [(1, 1), (4, 1), (8, 2), (12, 3), (32, 7), (48, 10), (80, 10)]
)
def test_the_window_fits_the_depth(blocks: int, window: int) -> None:
    assert TraceSettings().window_for(blocks) == window
    assert TraceSettings(window=6).window_for(blocks) == min(6, blocks)


def test_windows_are_those_of_the_published_code() -> None:
    assert list(window_around(20, 10, 48)) == list(range(15, 25))
    assert list(window_around(2, 2, 5)) == [1, 2]
    assert list(window_around(4, 3, 5)) == [3, 4]
    assert list(window_around(0, 10, 48)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "values",
    [{"level": "s"}, {"level": "-1"}, {"kinds": ()}, {"kinds": ("mlp", "mlp")}, {"window": 0}],
    ids=str,
)
def test_wrong_settings_are_named(values: dict[str, object]) -> None:
    with pytest.raises(ErrataError, match=next(iter(values))):
        TraceSettings.of(values)
    assert TraceSettings(kinds=TRACE_KINDS).deviations == 3.0
    assert TraceSettings(level="0.2").deviations is None
