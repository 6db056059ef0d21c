"""The identity of a model: which tensor is where counts, how it was loaded or wrapped does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

import errata.models.identity
from errata.core.errors import ErrataError
from errata.data.corpus import Corpus
from errata.experiments.run_folder import DIGEST, run_folder
from errata.models.families import family_of
from errata.models.identity import model_hash, old_form, same_record, same_weights
from errata.patches.edited_model import EditedModel, load
from errata.patches.weight_patch import WeightPatch
from errata.statistics.store import Store
from laws.bench import edited_model, over_families, over_shapes, patch_of
from patches.folders import saved_base
from tiny import SENTENCES, tiny_model, tiny_tokenizer


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    blocks = model.get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def swapped(model: PreTrainedModel) -> PreTrainedModel:
    blocks = blocks_of(model)
    blocks[2], blocks[3] = blocks[3], blocks[2]
    return model


def repeated(model: PreTrainedModel) -> PreTrainedModel:
    blocks = blocks_of(model)
    blocks.append(copy.deepcopy(blocks[3]))
    return model


@over_shapes
@pytest.mark.parametrize("change", [swapped, repeated])
def test_a_model_with_its_blocks_in_another_order_or_number_is_another_model(
    model_type: str, change: object, tmp_path: Path
) -> None:
    assert callable(change)
    other = EditedModel(change(tiny_model(model_type)), tiny_tokenizer(), "other")
    assert other.base.weights != edited_model(model_type).base.weights
    with pytest.raises(ErrataError, match=f"made for tiny-{model_type}"):
        other.apply(patch_of(model_type, "memit"))
    other.apply(patch_of(model_type, "memit"), allow_base=True)


def test_moments_of_a_model_with_its_blocks_in_another_order_are_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get(edited_model("gpt2"), Corpus("ours", SENTENCES), (1,))
    other = EditedModel(swapped(tiny_model("gpt2")), tiny_tokenizer(), "tiny-gpt2")
    assert store.best(other, (1,)) is None
    assert store.missing(other, Corpus("ours", SENTENCES), (1,)) == [1]


@over_families
def test_the_dtype_and_saving_do_not_matter(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type).to(torch.bfloat16)
    as_stored = model_hash(model)
    assert model_hash(model.float()) == as_stored
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert load(str(tmp_path), dtype=dtype).base.weights == as_stored


@over_families
def test_an_output_embedding_that_is_a_copy_counts_once(model_type: str) -> None:
    model = tiny_model(model_type)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        head.weight = nn.Parameter(embedding.weight.detach().clone())
    untied = model_hash(model)
    head.weight = embedding.weight
    assert model_hash(model) == untied


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_wrapper_does_not_matter(model_type: str, tmp_path: Path) -> None:
    plain = model_hash(tiny_model(model_type))
    target = "c_fc" if model_type == "gpt2" else "up_proj"
    assert model_hash(cast(Any, torch.compile(tiny_model(model_type)))) == plain
    wrapped = get_peft_model(tiny_model(model_type), LoraConfig(r=2, target_modules=[target]))
    assert model_hash(wrapped) != plain, "the adapter's own weights count"
    assert model_hash(wrapped.unload()) == plain
    assert model_hash(load(str(saved_base(model_type, tmp_path))).model) == plain


def test_a_patch_with_the_old_form_of_the_hash_still_applies() -> None:
    edited, patch = edited_model("gpt2"), patch_of("gpt2", "memit")
    made = patch.provenance
    base = made.base.with_values(weights=old_form(made.base.weights))
    old = WeightPatch(patch.updates, made.with_values(base=base))
    edited.apply(old)
    with torch.no_grad():
        other = edited_model("gpt2")
        family_of(other.model).mlp_out(other.model, 3).weight[0, 0] += 1.0
    with pytest.raises(ErrataError, match="this patch was made for"):
        other.apply(old)


def test_an_unfinished_run_with_the_old_form_of_the_hash_is_resumed(tmp_path: Path) -> None:
    base = edited_model("gpt2").base.model_dump()
    old = {"model": {**base, "weights": old_form(base["weights"])}, "more": [1]}
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path, "x", old) as (first, _):
        raise KeyboardInterrupt
    (first / DIGEST).unlink()  # runs with the old form have none
    with run_folder(tmp_path, "x", {"model": base, "more": [1]}) as (folder, resumed):
        assert folder == first and resumed
    assert not same_record({"weights": "ab"}, {"weights": "ac-d"})
    assert not same_record({"weights": "ab-c"}, {"weights": "ab-d"})
    assert not same_record({"name": "ab"}, {"name": "ab-d"})
    assert not same_record([{"weights": "ab"}], [])


def test_every_tensor_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    real = errata.models.identity.tensor_hash
    monkeypatch.setattr(
        errata.models.identity, "tensor_hash", lambda tensor: calls.append(0) or real(tensor)
    )
    edited = edited_model("gpt2")
    patch = patch_of("gpt2", "memit")
    calls.clear()
    for _ in range(2):
        assert same_weights(old_form(patch.provenance.base.weights), edited.base.weights)
    assert len(calls) == len(list(edited.model.parameters()))
