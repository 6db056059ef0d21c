"""What holds on the CPU holds on a CUDA device: tails, searches and patches are the same there."""

from __future__ import annotations

import pytest
import torch

from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_search import Targets, search_targets
from errata.methods.edit import compute_edit
from errata.models.hooks import Site
from errata.patches.edited_model import EditedModel
from laws.bench import (
    closeness,
    edited_model,
    moments_of,
    over_families,
    over_methods,
    quick,
    rewrites_of,
    weights,
)
from plain import place_of
from tiny import FACTS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SEARCH = Search(steps=4, learning_rate=0.2, clamp=1.5, stop_at=0.0, kl_weight=0.5)
on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _needs_the_device(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["device"] == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


def searched(edited: EditedModel) -> Targets:
    site = Site(place_of(edited.model, 2, "block"), "output")
    return search_targets(edited.model, rewrites_of(edited), 2, site, SEARCH)


@on_devices
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2"])
def test_a_search_finds_there_what_it_finds_here(device: str, model_type: str) -> None:
    here, there = edited_model(model_type), edited_model(model_type)
    there.model.to(device)
    found, expected = searched(there), searched(here)
    assert found.delta.device.type == device
    assert closeness(found.values.cpu(), expected.values) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
@over_families
@over_methods
def test_a_patch_made_there_is_that_made_here(
    device: str, model_type: str, method_name: str
) -> None:
    method, moments = quick(method_name), moments_of(model_type)
    here, there = edited_model(model_type), edited_model(model_type)
    there.model.to(device)
    before = weights(there.model.cpu())
    there.model.to(device)
    moved = {block: moment.to(torch.device(device)) for block, moment in moments.items()}
    patch = compute_edit(there, FACTS, method, moments=moved)
    expected = compute_edit(here, FACTS, method, moments=moments)
    for name, update in patch.updates.items():
        assert closeness(update.delta().cpu(), expected.updates[name].delta()) < 1e-3
    assert weights(there.model.cpu()) == before
