"""Settings of a method for a model without a preset: edits take without any tuning."""

from __future__ import annotations

import pytest

import errata
from errata.data.datasets import load_cases
from errata.methods import METHODS
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.settings import MAX_STEPS
from errata.methods.edit import compute_edit
from errata.methods.moments import moments_for
from errata.metrics.teacher_forced import score_cases
from errata.models.families import family_of
from errata.statistics.store import default_store

FACTS = 20
SHARE = 0.95


def share_edited(name: str, **given: float) -> float:
    """Return the share of facts of the demo model that an edit by default settings changes."""
    edited = errata.load("demo")
    method = METHODS[name]
    chosen = method.settled(
        method.defaults_for(family_of(edited.model).block_count(edited.model)), given
    )
    assert isinstance(chosen, ClosedForm)
    moments, _ = moments_for(edited, chosen, default_store(), "demo", None)
    cases, size = load_cases("demo", FACTS).cases, chosen.batch_limit or FACTS
    taken = []
    for start in range(0, FACTS, size):
        batch = cases[start : start + size]
        edited.apply(compute_edit(edited, [c.request for c in batch], chosen, moments=moments))
        taken += [scores[0].new.likeliest for scores in score_cases(edited, batch)]
        edited.undo()
    return sum(taken) / FACTS


@pytest.mark.parametrize("name", METHODS)
def test_edits_with_default_settings_take(name: str) -> None:
    assert share_edited(name) >= SHARE


def test_the_weight_published_for_one_model_fails_on_another() -> None:
    assert share_edited("memit", moment_weight=15000.0) < SHARE


@pytest.mark.parametrize("name", METHODS)
def test_steps_that_are_given_are_the_most_unless_max_steps_is_given_too(name: str) -> None:
    method = METHODS[name]
    for given, most in (({}, None), ({"steps": 5}, 5), ({"steps": 5, "max_steps": 7}, 7)):
        settled = method.settled(method.defaults_for(8), {"search": given} if given else {})
        assert isinstance(settled, ClosedForm)
        search = settled.search
        assert search.most_steps == (MAX_STEPS if most is None else most)
    reached = method.settled(method.defaults_for(8), {"search": {"clamp": 3.0}})
    assert isinstance(reached, ClosedForm)
    assert reached.search.most_steps == MAX_STEPS
