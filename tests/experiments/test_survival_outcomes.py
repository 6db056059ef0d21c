"""Classes, flip rate, decay and tests: by hand, by law, and against SciPy."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.core.errors import ErrataError
from errata.experiments.survival.outcomes import (
    CLASSES,
    class_shares,
    decay,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_test,
)

BEFORE = [True] * 8 + [False] * 2
AFTER = [True] * 5 + [False] * 3 + [True, False]


def once(outcomes: list[bool]) -> list[list[bool]]:
    return [[each] for each in outcomes]


def test_ten_edits_by_hand() -> None:
    found = class_shares(once(BEFORE), once(AFTER))
    assert {name: found[name].value for name in CLASSES} == {
        "stable": 0.5,
        "erased": 0.3,
        "emergent": 0.1,
        "impossible": 0.1,
    }
    assert found["flip_rate"].value == pytest.approx(3 / 8)
    assert found["flip_rate"].n == 8
    lost = decay(BEFORE, AFTER)
    assert lost is not None
    assert lost.value == pytest.approx((0.8 - 0.6) / 0.8)
    assert lost.low < lost.value < lost.high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_classes_share_out_all_edits(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    found = class_shares(once(before), once(after))
    assert sum(found[name].value for name in CLASSES) == pytest.approx(1)
    assert all(0 <= s.low <= s.value <= s.high <= 1 for s in found.values())
    assert ("flip_rate" in found) is any(before)
    lost = decay(before, after)
    assert (lost is None) is not any(before)
    if lost is not None and all(before):
        assert lost.value == pytest.approx(found["flip_rate"].value)


def test_edits_that_all_fare_alike_leave_room_for_doubt() -> None:
    kept, gone = decay([1.0] * 10, [1.0] * 10), decay([1.0] * 10, [0.0] * 10)
    assert kept is not None and gone is not None
    assert (kept.value, kept.low) == (0, 0)
    assert kept.high == pytest.approx(0.278, abs=1e-3)
    assert (gone.value, gone.high) == (1, 1)
    assert gone.low == pytest.approx(1 - 0.278, abs=1e-3)


def test_seeds_do_not_pass_for_more_edits() -> None:
    single = class_shares(once(BEFORE), once(AFTER))["stable"]
    tripled = class_shares([[b] * 3 for b in BEFORE], [[a] * 3 for a in AFTER])["stable"]
    assert tripled.value == single.value
    assert tripled.high - tripled.low == pytest.approx(single.high - single.low, rel=0.1)


outcome_pairs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


@settings(max_examples=100, deadline=None)
@given(outcome_pairs)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(
    pairs: list[tuple[bool, bool]],
) -> None:
    """Against the sum of the binomial coefficients of its tail, for any pairs or none."""
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    only_one = sum(a and not b for a, b in pairs)
    only_other = sum(b and not a for a, b in pairs)
    n, k = only_one + only_other, min(only_one, only_other)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-12)
    assert mcnemar(one, other) == mcnemar(other, one)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_steps_down_through_the_sorted_values(values: list[float]) -> None:
    """Against the definition: p times the number of values left, never less than the one before."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = highest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)  # statsmodels calls it every time
        assert holm(values) == pytest.approx(adjusted, rel=1e-12)


def test_without_statsmodels_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    for test in (lambda: mcnemar([True], [False]), lambda: holm([0.5])):
        with pytest.raises(ErrataError, match="needs statsmodels") as raised:
            test()
        assert raised.value.hints == ("pip install 'errata-lm[tune]'",)
    assert holm([]) == []


def test_the_test_follows_the_number_of_seeds() -> None:
    assert paired_test(once(BEFORE), once(AFTER))[0] == "exact McNemar"
    name, p = paired_test([[b] * 2 for b in BEFORE], [[True, True]] * 10)
    assert name == "paired bootstrap over edits"
    assert 0 < p <= 1
    assert paired_bootstrap([1.0] * 20, [0.0] * 20) < 0.01
    assert paired_bootstrap([1.0, 0.0] * 10, [0.0, 1.0] * 10) > 0.5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
