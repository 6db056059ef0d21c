"""With `max_steps` a search goes on until its target holds, and one that stopped short says so."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.data.datasets import load_cases
from errata.methods import METHODS
from errata.methods.closed_form import target_search
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.residual import target_site
from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_search import HOLDS, search_targets
from errata.methods.presets import settings_for
from errata.patches.weight_patch import WeightPatch
from laws.bench import closeness, edited_model, over_families, rewrites_of
from plain import search

NEAR = 3e-5
SHORT = Search(steps=3, learning_rate=0.2, clamp=8.0, stop_at=0.0, weight_decay=0.0, kl_weight=0.0)


@over_families
def test_a_search_goes_on_until_its_target_holds_as_a_plain_one(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = edited_model(model_type, dtype=torch.float64)
    rewrites = rewrites_of(edited)
    site = target_site(edited.model, 2, "mlp")
    longer = SHORT.with_values(steps=5)
    between = search_targets(edited.model, rewrites, 2, site, longer).least
    assert between is not None
    holds = float(between.sort().values[1:3].mean())  # half of the requests reach it by then
    monkeypatch.setattr(target_search, "HOLDS", holds)
    short = search_targets(edited.model, rewrites, 2, site, SHORT)
    assert short.failed, "nothing to go on for"
    found = search_targets(edited.model, rewrites, 2, site, SHORT.with_values(max_steps=6))
    assert found.least is not None
    torch.set_default_dtype(torch.float64)
    try:
        for i, rewrite in enumerate(rewrites):
            model = edited.model.requires_grad_(False)
            plain = search(model, rewrite, 2, "mlp", SHORT.with_values(max_steps=6), holds)
            assert closeness(found.losses[i], plain.losses) < NEAR
            assert closeness(found.delta[i], plain.delta) < NEAR
            assert abs(float(found.least[i]) - plain.least) < NEAR
            assert closeness(found.losses[i][:3], short.losses[i]) < NEAR
            assert (i in found.failed) == (plain.least < holds)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_low_mean_loss_is_not_enough_while_one_token_fails() -> None:
    """The mean over contexts and tokens hides a single token that is not the answer yet."""
    edited = errata.load("demo")
    requests = [case.request for case in load_cases("demo", 6).cases]
    method, *_ = settings_for(METHODS["rome"], edited, {})
    assert isinstance(method, ClosedForm)
    lenient = method.with_values(search={**method.search.model_dump(), "stop_at": 2.0})
    early = lenient.begin(edited, requests).shared()
    assert early.targets is not None
    assert early.targets.failed, "some token must fail while the mean loss is low"
    longer = lenient.with_values(search={**lenient.search.model_dump(), "max_steps": 60})
    found = longer.begin(edited, requests).shared()
    assert found.targets is not None
    assert found.targets.failed == ()
    assert found.targets.least is not None
    assert float(found.targets.least.min()) >= HOLDS


@pytest.mark.parametrize("name", METHODS)
def test_a_search_that_stopped_short_is_noted_in_the_patch(name: str) -> None:
    edited = errata.load("demo")
    request = load_cases("demo", 1).cases[0].request
    for steps, noted in ((1, True), (60, False)):
        search = {"steps": 1, "max_steps": steps}
        patch = errata.edit(edited, request, name, search=search)
        edited.undo()
        assert isinstance(patch, WeightPatch)
        assert any("stopped short" in note for note in patch.provenance.notes) == noted


def test_settings_without_max_steps_are_recorded_as_before() -> None:
    assert "max_steps" not in Search().model_dump()
    assert Search(steps=7).most_steps == 7
    assert Search(steps=7, max_steps=20).model_dump()["max_steps"] == 20
