"""Promise 5: a patch file is its patch to the bit, and a stack does not know how it was reached."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.methods.edit import compute_edit
from errata.models.families import oriented, weight_of
from errata.patches.base import Provenance
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch, write
from laws.bench import (
    apply_edit,
    closeness,
    edited_model,
    moments_of,
    over_methods,
    over_shapes,
    patch_of,
    quick,
    random_patch,
    weights,
)
from tiny import FACTS


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@over_shapes
@over_methods
def test_loading_a_saved_patch_gives_the_patch(
    model_type: str, method_name: str, tmp_path: Path
) -> None:
    patch = patch_of(model_type, method_name)
    path = patch.save(tmp_path / "patch.safetensors")
    loaded = WeightPatch.load(path)
    assert loaded == patch
    assert loaded.provenance == patch.provenance
    assert list(loaded.updates) == sorted(patch.updates)
    for name, update in patch.updates.items():
        for letter, tensor in update.tensors().items():
            assert torch.equal(getattr(loaded.updates[name], letter), tensor)
    again = loaded.save(tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    made = quick(method_name).of(loaded.provenance.settings)
    assert made.requests_at_once is not None, "how requests were grouped is not recorded"
    assert made.with_values(requests_at_once=None) == quick(method_name)


@over_shapes
@over_methods
def test_a_patch_names_what_it_stands_on(model_type: str, method_name: str) -> None:
    edited, patch = edited_model(model_type), patch_of(model_type, method_name)
    provenance = patch.provenance
    assert provenance.base == edited.base
    assert provenance.method == method_name
    assert provenance.requests == FACTS[:2]
    assert provenance.prefixes == quick(method_name).contexts.prefixes
    assert set(provenance.weights) == set(patch.updates)
    assert len(provenance.losses) == 2
    assert set(provenance.versions) == {"errata", "torch", "transformers"}


@pytest.mark.parametrize("what", ["number", "request", "shape"])
def test_patches_that_differ_in_anything_are_different(what: str) -> None:
    edited = edited_model("gpt2")
    patch = random_patch(edited, 0)
    updates, provenance = dict(copy.deepcopy(patch.updates)), patch.provenance
    name = sorted(updates)[1]
    if what == "number":
        updates[name].A[-1, -1] += 1e-6
    elif what == "request":
        provenance = provenance.with_values(requests=FACTS[1:2])
    else:
        del updates[name]
    assert WeightPatch(updates, provenance) != patch
    assert patch != "a patch"
    assert WeightPatch(copy.deepcopy(patch.updates), patch.provenance) == patch
    assert len({patch, random_patch(edited, 0), random_patch(edited, 1)}) == 2


@over_shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_stack_does_not_depend_on_how_it_was_reached(model_type: str, dtype: torch.dtype) -> None:
    straight = edited_model(model_type, dtype=dtype)
    pool = [random_patch(straight, seed, size=10.0 ** (seed - 2)) for seed in range(4)]
    wanted = [pool[2], pool[0], pool[3]]
    for patch in wanted:
        straight.apply(patch)
    chance = random.Random(5)
    for _ in range(3):
        winding = edited_model(model_type, dtype=dtype)
        for _ in range(12):
            if winding.patches and chance.random() < 0.4:
                winding.undo(chance.choice(winding.patches))
            else:
                left = [patch for patch in pool if patch not in winding.patches]
                if left:
                    winding.apply(chance.choice(left))
        for patch in list(winding.patches):
            winding.undo(patch)
        for patch in [*wanted[:1], pool[1], *wanted[1:]]:
            winding.apply(patch)
        winding.undo(pool[1])
        assert winding.patches == wanted
        assert weights(winding.model) == weights(straight.model)


@over_shapes
def test_taking_one_out_of_the_middle_leaves_the_others_on(model_type: str) -> None:
    edited, other = edited_model(model_type), edited_model(model_type)
    patches = [random_patch(edited, seed) for seed in range(3)]
    for patch in patches:
        edited.apply(patch)
    edited.undo(patches[1])
    other.apply(patches[0])
    other.apply(patches[2])
    assert weights(edited.model) == weights(other.model)


@over_shapes
def test_applying_adds_R_A_to_W(model_type: str) -> None:
    edited = edited_model(model_type)
    patch = random_patch(edited, 0)
    before = {name: weight_of(edited.model, name)[1].detach().clone() for name in patch.updates}
    edited.apply(patch)
    for name, update in patch.updates.items():
        module, now = weight_of(edited.model, name)
        assert update.R is not None
        change = oriented(module, now.detach() - before[name])
        assert closeness(change, update.R @ update.A) < 1e-4
        fed = drawn(1, update.A.shape[1])
        with torch.no_grad():
            said = module(fed)
            write(edited.model, before, [])
            assert closeness(said - module(fed), fed @ update.A.T @ update.R.T) < 1e-3
        write(edited.model, before, [patch])


@pytest.mark.parametrize("count", [1, 5, 6, 9, 30])
def test_an_update_takes_the_smaller_form_and_says_the_same(count: int) -> None:
    R, A, K = drawn(9, count), drawn(count, 14, seed=1), drawn(14, count, seed=2)
    update = Update.of(R, A, K)
    assert closeness(update.delta(), R.double() @ A.double()) < 1e-6
    assert closeness(update.K @ update.K.T, K @ K.T) < 1e-5
    assert update.K.shape[1] <= 14
    held = update.A.numel() + (0 if update.R is None else update.R.numel())
    assert held <= 9 * 14
    assert (update.R is None) == (count * (9 + 14) > 9 * 14)


@over_shapes
def test_patches_past_the_weights_size_are_dense_and_work_on(
    model_type: str, tmp_path: Path
) -> None:
    edited = edited_model(model_type)
    patch = random_patch(edited, 0, size=0.01, rank=70)
    assert all(update.R is None for update in patch.updates.values())
    assert WeightPatch.load(patch.save(tmp_path / "dense.safetensors")) == patch
    before = weights(edited.model)
    edited.apply(patch)
    method, moments = quick("alphaedit"), moments_of(model_type)
    apply_edit(edited, FACTS[:1], method, moments=moments)
    edited.undo()
    edited.undo()
    assert weights(edited.model) == before


def test_the_parents_of_a_patch_are_what_stood_below(tmp_path: Path) -> None:
    edited = edited_model("llama")
    below = [random_patch(edited, seed) for seed in (1, 2)]
    for patch in below:
        edited.apply(patch)
    top = compute_edit(edited, FACTS[:1], quick("memit"), moments=moments_of("llama"))
    assert top.provenance.parents == tuple(patch.digest for patch in below)
    assert top.provenance.base == edited_model("llama").base
    assert top.provenance.weights == patch_of("llama", "memit").provenance.weights
    assert isinstance(WeightPatch.load(top.save(tmp_path / "p.safetensors")).provenance, Provenance)
