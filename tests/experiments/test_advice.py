"""Advice: every shortfall names the setting to move, a run without one gets no advice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.experiments.advice import advise
from errata.experiments.edit_plan import EditPlan
from errata.methods import METHODS, Method
from errata.metrics.scores import Score, share

TEN = 10


def rate(right: int, count: int = TEN) -> Score:
    found = share([True] * right + [False] * (count - right))
    assert found is not None
    return found


def advice(
    *,
    method: str = "memit",
    plan: EditPlan | None = None,
    said: Sequence[bool] = (True,) * TEN,
    short: Sequence[int] | None = (),
    paraphrase: int = TEN,
    neighbourhood: tuple[int, int] = (TEN, TEN),
    count: int = TEN,
    ending: str = "",
    **settings: Any,
) -> str | None:
    """Return the advice on ten edits: all is well, but for what is given.

    Prompts are `count` of each kind, of which so many are right.
    """
    then, now = neighbourhood
    before = {f"neighbourhood{ending}": rate(then, count), f"efficacy{ending}": rate(0)}
    after = {
        f"efficacy{ending}": rate(sum(said)),
        f"paraphrase{ending}": rate(paraphrase),
        f"neighbourhood{ending}": rate(now, count),
    }
    chosen: Method = METHODS[method].of(settings)
    return advise(said, short, before, after, chosen, plan or EditPlan())


SOME = (False,) * 3 + (True,) * 7
FAILED = "3 of 10 edits failed: another answer is still likelier"


@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("ending", ["", "_tokens", "_accuracy"])
def test_a_run_that_went_well_gets_no_advice(method_name: str, ending: str) -> None:
    assert advice(method=method_name, ending=ending) is None


def test_where_nothing_is_known_of_the_search_all_that_helps_is_named() -> None:
    assert advice(said=SOME, short=None) == (
        f"{FAILED}; try a smaller --moment-weight (it is 15000), more --steps, other --blocks or "
        "another --method"
    )
    assert advice(short=None) is None


def test_a_search_that_stopped_short_needs_more_steps_or_a_larger_clamp() -> None:
    """Nothing is said of what restrains the weights, which had nothing to write."""
    assert advice(said=SOME, short=(0, 1, 2)) == (
        f"{FAILED}; the search stopped short for 3 of 10 targets (1, 2, 3), which do not hold in "
        "every context: try --max-steps above 20 or a larger --clamp (it is 0.75)"
    )
    found = advice(said=SOME, short=(0, 1, 2), search={"max_steps": 100})
    assert found is not None and "try --max-steps above 100 or" in found


def test_a_search_that_stopped_short_is_named_where_the_edit_took() -> None:
    assert advice(short=(7,)) == (
        "the search stopped short for 1 of 10 targets (8), which do not hold in every context: "
        "try --max-steps above 20 or a larger --clamp (it is 0.75)"
    )


def test_the_numbers_of_at_most_ten_requests_are_listed() -> None:
    found = advice(said=(True,) * 12, short=range(12))
    assert found is not None and "12 of 12 targets (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)" in found
    found = advice(short=range(10))
    assert found is not None and "(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)" in found


@pytest.mark.parametrize(
    ("method", "plan", "ways"),
    [
        ("memit", EditPlan(), "a smaller --moment-weight (it is 15000), smaller batches "
                              "(--batch-size) or other --blocks"),
        ("memit", EditPlan(batch_size=1), "a smaller --moment-weight (it is 15000) or other "
                                          "--blocks"),
        ("alphaedit", EditPlan(batch_size=1), "a smaller --ridge (it is 10), a larger "
         "--null-space-threshold (it is 0.02) or other --blocks"),
        ("rome", EditPlan(), "each fact alone (--batch-size 1) or other --blocks"),
        ("rome", EditPlan(batch_size=1), "other --blocks"),
    ],
)  # fmt: skip
def test_weights_that_fell_short_need_less_restraint(
    method: str, plan: EditPlan, ways: str
) -> None:
    assert advice(method=method, plan=plan, said=SOME) == (
        f"{FAILED}; the search reached 3 targets that the edited weights do not give: try {ways}"
    )


def test_the_relative_form_of_a_setting_is_named_where_it_is_used() -> None:
    found = advice(said=SOME, relative_weight=1.0)
    assert found is not None and "try a smaller --relative-weight (it is 1)" in found
    assert "moment-weight" not in found


def test_both_kinds_of_failure_are_counted_apart() -> None:
    found = advice(said=SOME, short=(0,))
    assert found is not None
    assert "for 1 of 10 targets (1)," in found and "reached 2 targets that" in found


@pytest.mark.parametrize("ending", ["", "_tokens", "_accuracy"])
def test_lost_neighbours_need_more_restraint(ending: str) -> None:
    assert advice(neighbourhood=(10, 5), ending=ending) == (
        "neighbours lost, 100 % to 50 %: try a larger --moment-weight (it is 15000), a smaller "
        "--clamp (it is 0.75), smaller batches (--batch-size) or other --blocks"
    )
    found = advice(method="alphaedit", neighbourhood=(10, 5), ending=ending)
    assert found is not None
    assert "a larger --ridge (it is 10), a smaller --null-space-threshold" in found
    alone = EditPlan(batch_size=1)
    found = advice(method="rome", neighbourhood=(10, 5), ending=ending, plan=alone)
    assert found is not None and found.endswith("a smaller --clamp (it is 4) or other --blocks")
    found = advice(method="rome", neighbourhood=(10, 5), ending=ending)
    assert found is not None and "each fact alone (--batch-size 1)" in found
    found = advice(method="rome", neighbourhood=(10, 5), ending=ending, second_moment=False)
    assert found is not None and "try the second moment (omit --no-second-moment), a s" in found


def test_neighbours_within_the_interval_before_are_not_lost() -> None:
    assert rate(8).low < 0.5 < rate(8).value
    assert advice(neighbourhood=(8, 5)) is None
    assert advice(neighbourhood=(8, 4)) is not None
    assert advice(neighbourhood=(8, 10)) is None


def test_a_small_fall_over_many_neighbours_is_usual() -> None:
    assert rate(9000, 10000).low > 0.87
    assert advice(neighbourhood=(9000, 8600), count=10000) is None
    assert advice(neighbourhood=(9000, 8400), count=10000) is not None


@pytest.mark.parametrize("ending", ["", "_tokens", "_accuracy"])
def test_lost_paraphrases_need_more_contexts(ending: str) -> None:
    assert advice(paraphrase=6, ending=ending) == (
        "paraphrases lost, 60 % against 100 % of the edited prompts: try more context prefixes "
        "(--prefix-lengths), another --position or other --blocks"
    )


def test_paraphrases_as_good_as_the_edits_are_not_lost() -> None:
    assert advice(paraphrase=8) is None
    found = advice(said=(True,) * 5 + (False,) * 5, short=range(5, 10), paraphrase=5)
    assert found is not None and "paraphrases" not in found


def test_scores_that_cannot_be_compared_are_left_out() -> None:
    """Without a true answer there are tokens of the edit, and nothing of its neighbours."""
    after = {"efficacy_tokens": rate(10), "neighbourhood": rate(0)}
    chosen = METHODS["rome"]()
    assert advise((True,), (), {}, after, chosen, EditPlan()) is None


def test_several_shortfalls_are_one_line() -> None:
    found = advice(said=SOME, short=(1,), paraphrase=0, neighbourhood=(10, 0))
    assert found is not None and "\n" not in found
    parts = ("failed", "stopped short", "do not give", "neighbours lost", "paraphrases lost")
    assert [part in found for part in parts] == [True] * 5


def edited(results: Path, *arguments: str) -> tuple[dict[str, Any], str, Path]:
    """Edit facts of the demo; return what is printed as JSON, as warnings, and the run's folder."""
    words = ["edit", "demo", "--dataset", "demo", "--results", str(results), *arguments, "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    return found, done.stderr, Path(found["run"])


UNDER = ("--limit", "3", "--method", "memit", "--moment-weight", "1e9")
SHORT = ("--limit", "3", "--method", "memit", "--steps", "1")
OVER = ("--limit", "20", "--method", "memit", "--moment-weight", "1e-9", "--clamp", "50",
        "--weight-decay", "0", "--kl-weight", "0", "--stop-at", "0", "--learning-rate", "10",
        "--steps", "10", "--blocks", "1")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (UNDER, ("3 of 3 edits failed", "weights do not give: try a smaller --moment-w")),
        (SHORT, ("3 of 3 edits failed", "short for 3 of 3 targets (1, 2, 3), which do")),
        (OVER, ("neighbours lost, 100 % to ", "try a larger --moment-weight (it is 1e-09)")),
        (("--limit", "3", "--method", "memit"), ()),
    ],
    ids=["under", "short", "over", "well"],
)
def test_a_run_advises(arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    found, warned, run = edited(tmp_path, *arguments)
    line, stored = found["advice"], json.loads((run / "summary.json").read_text("utf-8"))
    assert stored["advice"] == line
    numbers = [1, 2, 3] if "stopped short" in str(line) else []
    assert found["stopped_short"] == stored["stopped_short"] == numbers
    report = (run / "report.md").read_text("utf-8")
    if not parts:
        assert line is None and "warning" not in warned and "Advice" not in report
        return
    assert all(part in line for part in parts), line
    assert f"warning: {line}\n" in warned and f"\n\nAdvice: {line}.\n\n" in report
    shown = CliRunner().invoke(app, ["summarize", str(run)], catch_exceptions=False).stdout
    assert f"* MEMIT/run_000, advice: {line}\n" in shown
