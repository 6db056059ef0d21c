"""Advice: every shortfall names the setting to move, a run without one gets no advice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.experiments.advice import advise, reached_by
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
    reached: Sequence[bool] | None = (True,) * TEN,
    paraphrase: int = TEN,
    neighbourhood: tuple[int, int] = (TEN, TEN),
    ending: str = "",
    **settings: Any,
) -> str | None:
    """Return the advice on ten edits: all is well, but for what is given."""
    then, now = neighbourhood
    before = {f"neighbourhood{ending}": rate(then), f"efficacy{ending}": rate(0)}
    after = {
        f"efficacy{ending}": rate(sum(said)),
        f"paraphrase{ending}": rate(paraphrase),
        f"neighbourhood{ending}": rate(now),
    }
    chosen: Method = METHODS[method].of(settings)
    return advise(said, reached, before, after, chosen, plan or EditPlan())


SOME = (False,) * 3 + (True,) * 7
FIVE = (True,) * 5 + (False,) * 5


@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("ending", ["", "_tokens", "_accuracy"])
def test_a_run_that_went_well_gets_no_advice(method_name: str, ending: str) -> None:
    assert advice(method=method_name, ending=ending) is None


@pytest.mark.parametrize(
    ("loss", "reached"), [(0.05, True), (-math.log(0.51), True), (-math.log(0.49), False),
                          (1.26, False)],
)  # fmt: skip
def test_a_search_reached_a_target_that_is_likely_token_by_token(
    loss: float, reached: bool
) -> None:
    assert reached_by([loss, 0.0], 2) == [reached, True]


def test_without_a_loss_per_request_nothing_is_known_of_the_search() -> None:
    assert reached_by([], 2) is None and reached_by([0.1], 2) is None
    assert advice(said=SOME, reached=None) == (
        "3 of 10 edits failed: another answer is still likelier; try a smaller --moment-weight "
        "(it is 15000) or more --steps or other --blocks or another --method"
    )


def test_a_search_that_fell_short_needs_more_steps_or_a_larger_clamp() -> None:
    """Nothing is said of what restrains the weights, which had nothing to write."""
    assert advice(said=SOME, reached=SOME) == (
        "3 of 10 edits failed: another answer is still likelier; the search did not reach 3 "
        "targets: try more --steps (it is 20) or a larger --clamp (it is 0.75)"
    )


@pytest.mark.parametrize(
    ("method", "plan", "ways"),
    [
        ("memit", EditPlan(), "a smaller --moment-weight (it is 15000) or smaller batches "
                              "(--batch-size) or other --blocks"),
        ("memit", EditPlan(batch_size=1), "a smaller --moment-weight (it is 15000) or other "
                                          "--blocks"),
        ("alphaedit", EditPlan(batch_size=1), "a smaller --ridge (it is 10) or a larger "
         "--null-space-threshold (it is 0.02) or other --blocks"),
        ("rome", EditPlan(), "each fact alone (--batch-size 1) or other --blocks"),
        ("rome", EditPlan(batch_size=1), "other --blocks"),
    ],
)  # fmt: skip
def test_weights_that_fell_short_need_less_restraint(
    method: str, plan: EditPlan, ways: str
) -> None:
    assert advice(method=method, plan=plan, said=SOME) == (
        "3 of 10 edits failed: another answer is still likelier; the search reached 3 targets, "
        f"the edited weights did not: try {ways}"
    )


def test_both_kinds_of_failure_are_counted_apart() -> None:
    found = advice(said=SOME, reached=(False, *(True,) * 9))
    assert found is not None
    assert "did not reach 1 target:" in found and "the search reached 2 targets," in found


@pytest.mark.parametrize("ending", ["", "_tokens", "_accuracy"])
def test_lost_neighbours_need_more_restraint(ending: str) -> None:
    assert advice(neighbourhood=(10, 5), ending=ending) == (
        "neighbours lost, 100 % to 50 %: try a larger --moment-weight (it is 15000) or a smaller "
        "--clamp (it is 0.75) or other --blocks"
    )
    found = advice(method="alphaedit", neighbourhood=(10, 5), ending=ending)
    assert found is not None
    assert "a larger --ridge (it is 10) or a smaller --null-space-threshold" in found
    found = advice(method="rome", neighbourhood=(10, 5), ending=ending)
    assert found is not None and "try a smaller --clamp (it is 4) or other --blocks" in found
    found = advice(method="rome", neighbourhood=(10, 5), ending=ending, second_moment=False)
    assert found is not None and "try the second moment (omit --no-second-moment) or a s" in found


def test_neighbours_within_the_interval_before_are_not_lost() -> None:
    assert rate(8).low < 0.5 < rate(8).value
    assert advice(neighbourhood=(8, 5)) is None
    assert advice(neighbourhood=(8, 4)) is not None
    assert advice(neighbourhood=(8, 10)) is None


@pytest.mark.parametrize("ending", ["", "_tokens", "_accuracy"])
def test_lost_paraphrases_need_more_contexts(ending: str) -> None:
    assert advice(paraphrase=6, ending=ending) == (
        "paraphrases lost, 60 % against 100 % of the edited prompts: try more context prefixes "
        "(--prefix-lengths) or another --position or other --blocks"
    )


def test_paraphrases_as_good_as_the_edits_are_not_lost() -> None:
    assert advice(paraphrase=8) is None
    found = advice(said=FIVE, reached=FIVE, paraphrase=5)
    assert found is not None and "paraphrases" not in found


def test_scores_that_cannot_be_compared_are_left_out() -> None:
    """Without a true answer there are tokens of the edit, and nothing of its neighbours."""
    after = {"efficacy_tokens": rate(10), "neighbourhood": rate(0)}
    chosen = METHODS["rome"]()
    assert advise((True,), (True,), {}, after, chosen, EditPlan()) is None


def test_several_shortfalls_are_one_line() -> None:
    found = advice(said=SOME, paraphrase=0, neighbourhood=(10, 0))
    assert found is not None and "\n" not in found
    parts = ("failed", "neighbours lost", "paraphrases lost")
    assert [part in found for part in parts] == [True] * 3


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
        (UNDER, ("3 of 3 edits failed", "the edited weights did not: try a smaller --moment-w")),
        (SHORT, ("3 of 3 edits failed", "did not reach 3 targets: try more --steps (it is 1)")),
        (OVER, ("neighbours lost, 100 % to ", "try a larger --moment-weight (it is 1e-09)")),
        (("--limit", "3", "--method", "memit"), ()),
    ],
    ids=["under", "short", "over", "well"],
)
def test_a_run_advises(arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    found, warned, run = edited(tmp_path, *arguments)
    line, stored = found["advice"], json.loads((run / "summary.json").read_text("utf-8"))
    assert stored["advice"] == line
    report = (run / "report.md").read_text("utf-8")
    if not parts:
        assert line is None and "warning" not in warned and "Advice" not in report
        return
    assert all(part in line for part in parts), line
    assert f"warning: {line}\n" in warned and f"\n\nAdvice: {line}.\n\n" in report
