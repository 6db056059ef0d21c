"""Layerwise reads equal fresh reads, and lower layers are not recomputed."""

from __future__ import annotations

import pytest
import torch

import errata.methods.closed_form.keys
import errata.models.layerwise
import errata.models.prefix_cache
from errata.methods.closed_form.keys import Keys, bare_rows, keys_of
from errata.models.families import family_of, width_of
from errata.models.hooks import Site, frozen
from errata.models.layerwise import LayerwiseReader, read_at
from errata.patches.weight_patch import add, keeping
from laws.bench import closeness, edited_model, over_families, rewrites_of
from laws.test_work import counted
from tiny import BLOCKS

WAYS = {
    "all stored": {},
    "nothing stored": {"STATE_BYTES": 0},
    "some stored": {"STATE_BYTES": 1, "PASSES": 0},
}


@over_families
@pytest.mark.parametrize("way", WAYS)
def test_keys_read_layer_by_layer_equal_those_of_a_fresh_read(
    model_type: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in WAYS[way].items():
        monkeypatch.setattr(errata.models.layerwise, name, value)
        if hasattr(errata.methods.closed_form.keys, name):
            monkeypatch.setattr(errata.methods.closed_form.keys, name, value)
    monkeypatch.setattr(errata.models.prefix_cache, "WORTH_A_PASS", 1)
    edited = edited_model(model_type, dtype=torch.float64)
    model, family = edited.model, family_of(edited.model)
    rewrites, source = rewrites_of(edited), torch.Generator().manual_seed(0)
    names = [family.weight_name(block) for block in range(BLOCKS)]
    top = [Site(family.block(model, BLOCKS - 1), "output")]
    keys, bare = Keys(model, rewrites), LayerwiseReader(model, bare_rows(rewrites))
    with frozen(model), keeping(model, names):
        for block in (0, 1, 3):
            found, expected = keys.at(block), keys_of(model, rewrites, block)
            for one, other in zip(found, expected, strict=True):
                assert closeness(one, other) < 1e-6  # keys are float32
            (state,) = bare.read(top, block)
            assert closeness(state, read_at(model, bare_rows(rewrites), top)[0]) < 1e-12
            d_in = width_of(family.mlp_out(model, block))
            add(model, names[block], torch.randn(state.shape[1], d_in, generator=source) / 10)
    stored = keys.parts[0][1].state_bytes()
    assert (stored > 0) is (way != "nothing stored")


@over_families
def test_lower_layers_run_once(model_type: str) -> None:
    edited = edited_model(model_type)
    with counted(edited.model) as work:
        keys = Keys(edited.model, rewrites_of(edited))
        keys.at(1)
        first = list(work.blocks)
        keys.at(3, last=True)
    assert work.blocks[0] == first[0] == keys.tokens()
    assert work.blocks[1:] == [2 * first[1], first[1], first[1]]
