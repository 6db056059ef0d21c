"""A patch goes onto the model it was made for; what would be lost or wrong is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from errata.core.errors import ErrataError, command_hints
from errata.methods.edit import compute_edit
from errata.models.families import FAMILIES, family_of, weight_of
from errata.models.identity import model_hash
from errata.patches.edited_model import EditedModel, load
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from laws.bench import (
    apply_edit,
    edited_model,
    found,
    moments_of,
    over_methods,
    over_shapes,
    patch_of,
    quick,
    random_patch,
    weights,
)
from tiny import CONFIGS, FACTS, tiny_model, tiny_tokenizer


def nudged(model_type: str) -> EditedModel:
    """Return another base: one number of one weight that no patch edits is different."""
    edited = edited_model(model_type)
    with torch.no_grad():
        family_of(edited.model).mlp_out(edited.model, 3).weight[0, 0] += 1.0
    return edited


@over_shapes
@over_methods
def test_another_base_is_refused_unless_allowed(model_type: str, method_name: str) -> None:
    patch, other = patch_of(model_type, method_name), nudged(model_type)
    before = found(other.model)
    with pytest.raises(ErrataError, match=f"made for tiny-{model_type}") as caught:
        other.apply(patch)
    assert "allow_base=True" in str(caught.value)
    assert any("--allow-base" in hint for hint in command_hints(caught.value))
    assert found(other.model) == before
    assert other.patches == []
    other.apply(patch, allow_base=True)
    assert other.patches == [patch]
    other.undo()
    assert found(other.model) == before


@over_shapes
def test_applied_checks_the_weights_it_edits(model_type: str) -> None:
    patch, other = patch_of(model_type, "memit"), edited_model(model_type)
    with torch.no_grad():
        family_of(other.model).mlp_out(other.model, 2).weight[0, 0] += 1.0
    before = found(other.model)
    with pytest.raises(ErrataError, match="made for another model"), patch.applied(other.model):
        pass
    assert found(other.model) == before
    with patch.applied(other.model, allow_base=True):
        assert weights(other.model) != before["weights"]
    assert found(other.model) == before


@over_shapes
def test_the_base_is_the_unedited_model_whenever_it_is_asked_for(model_type: str) -> None:
    asked_first, asked_late = edited_model(model_type), edited_model(model_type)
    patch = random_patch(asked_first, 0)
    asked_late.apply(patch, allow_base=True)
    assert "base" not in vars(asked_late)
    assert asked_late.base == asked_first.base


def test_families_and_seeds_are_different_bases() -> None:
    hashes = {model_type: model_hash(tiny_model(model_type)) for model_type in FAMILIES}
    assert len(set(hashes.values())) == len(FAMILIES)
    for model_type in FAMILIES.keys() & CONFIGS.keys():
        assert nudged(model_type).base.weights != hashes[model_type]


def renamed(patch: WeightPatch) -> WeightPatch:
    return WeightPatch(
        {f"model.other.{name}": update for name, update in patch.updates.items()}, patch.provenance
    )


def transposed(patch: WeightPatch) -> WeightPatch:
    updates = {
        name: Update(update.A.T.contiguous(), update.R.T.contiguous(), update.R)
        for name, update in patch.updates.items()
        if update.R is not None
    }
    return WeightPatch(updates, patch.provenance)


def half_wrong(patch: WeightPatch) -> WeightPatch:
    good, bad = sorted(patch.updates)
    return WeightPatch(
        {good: patch.updates[good], bad: transposed(patch).updates[bad]}, patch.provenance
    )


@over_shapes
@pytest.mark.parametrize("spoil", [renamed, transposed, half_wrong])
@pytest.mark.parametrize("below", [0, 1])
def test_a_patch_of_another_architecture_is_refused_and_nothing_is_changed(
    model_type: str, spoil: Callable[[WeightPatch], WeightPatch], below: int
) -> None:
    edited = edited_model(model_type)
    for seed in range(below):
        edited.apply(random_patch(edited, seed))
    patch, before = spoil(random_patch(edited, 9)), found(edited.model)
    with pytest.raises(ErrataError, match="another architecture"):
        edited.apply(patch, allow_base=True)
    assert found(edited.model) == before
    assert len(edited.patches) == below
    with (
        pytest.raises(ErrataError, match="another architecture"),
        patch.applied(edited.model, allow_base=True),
    ):
        pass
    assert found(edited.model) == before


def on_meta(model: PreTrainedModel, block: int) -> None:
    write = family_of(model).mlp_out(model, block)
    write.weight = nn.Parameter(write.weight.detach().to("meta"))


@over_shapes
@pytest.mark.parametrize("block", [1, 3], ids=["edited", "elsewhere"])
def test_offloaded_weights_are_refused(model_type: str, block: int) -> None:
    edited, patch = edited_model(model_type), random_patch(edited_model(model_type), 0)
    on_meta(edited.model, block)
    with pytest.raises(ErrataError, match="offloaded") as caught:
        edited.apply(patch)
    assert caught.value.hints
    with pytest.raises(ErrataError, match="offloaded"):
        compute_edit(edited, FACTS[:1], quick("memit"), moments=moments_of(model_type))
    if block == 1:
        with pytest.raises(ErrataError, match="offloaded"):
            edited.apply(patch, allow_base=True)


@over_shapes
def test_weights_that_are_not_plain_floats_are_refused(model_type: str) -> None:
    edited = edited_model(model_type)
    write = family_of(edited.model).mlp_out(edited.model, 1)
    write.weight = nn.Parameter(write.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ErrataError, match="cannot be edited in place"):
        weight_of(edited.model, family_of(edited.model).weight_name(1))


def test_an_unknown_family_is_refused_with_hints() -> None:
    model = tiny_model("gpt2")
    model.config.model_type = "abacus"
    with pytest.raises(ErrataError, match="models of type 'abacus' are not supported") as caught:
        EditedModel(model, tiny_tokenizer(), "abacus")
    assert caught.value.hints[0] == f"supported types: {', '.join(sorted(FAMILIES))}"
    assert "CONTRIBUTING.md" in caught.value.hints[1]


@over_shapes
@pytest.mark.parametrize("block", [-1, 4, 99])
def test_a_block_that_is_not_there_is_refused(model_type: str, block: int) -> None:
    with pytest.raises(
        ErrataError, match=f"there is no block {block}: the model has blocks 0 to 3"
    ):
        family_of(tiny_model(model_type)).block(tiny_model(model_type), block)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match=r"there is no folder .*nowhere") as caught:
        load(str(tmp_path / "nowhere"))
    assert any("config.json" in hint for hint in caught.value.hints)


@over_shapes
def test_undoing_what_is_not_there_is_refused(model_type: str) -> None:
    edited = edited_model(model_type)
    with pytest.raises(ErrataError, match="no such patch"):
        edited.undo()
    edited.apply(random_patch(edited, 0))
    before = found(edited.model)
    with pytest.raises(ErrataError, match="no such patch"):
        edited.undo(random_patch(edited, 1))
    assert found(edited.model) == before


@over_shapes
@over_methods
def test_a_model_that_holds_nan_is_refused_and_left_alone(
    model_type: str, method_name: str
) -> None:
    edited = edited_model(model_type)
    with torch.no_grad():
        family_of(edited.model).mlp_out(edited.model, 3).weight.fill_(float("nan"))
    before = weights(edited.model)
    with pytest.raises(ErrataError, match="not finite"):
        apply_edit(edited, FACTS[:1], quick(method_name), moments=moments_of(model_type))
    assert weights(edited.model) == before


@over_shapes
@over_methods
def test_a_search_that_runs_away_is_refused(model_type: str, method_name: str) -> None:
    """The loss is finite at first and NaN later; such a patch must not come about."""
    edited = edited_model(model_type)
    search = {"steps": 4, "learning_rate": 1e30, "clamp": 1e38, "weight_decay": 0.0}
    with pytest.raises(ErrataError, match="finite"):
        apply_edit(
            edited, FACTS[:1], quick(method_name, search=search), moments=moments_of(model_type)
        )


@over_methods
def test_missing_second_moments_are_named(method_name: str) -> None:
    edited = edited_model("gpt2")
    with pytest.raises(ErrataError, match=r"needs the second moment of block [12]"):
        apply_edit(edited, FACTS[:1], quick(method_name), moments={})


@over_methods
def test_contradicting_requests_change_nothing(method_name: str) -> None:
    edited = edited_model("gpt2")
    requests = [FACTS[0], FACTS[0].with_values(target="Pell")]
    with pytest.raises(ErrataError, match="conflicting requests"):
        apply_edit(edited, requests, quick(method_name), moments=moments_of("gpt2"))
    assert edited.patches == []
