"""Adapters on the embeddings of models whose output embedding is tied to the input embedding."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from errata.patches.adapter import merge_adapter, read_adapter
from errata.patches.edited_model import load
from errata.patches.export import export_merged
from laws.bench import random_patch
from patches.folders import far, logits, saved_base
from tiny import tiny_model

NAMES = {"gpt2": {"embed_tokens": "wte", "q_proj": "c_attn"}}
SAVED = {"target_modules": ["q_proj"]}
TYPES = pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "gemma3_text"])
UNTIED: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "DoRA of the head": {"target_modules": ["lm_head"], "use_dora": True},
    "DoRA of the embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "saved head": {**SAVED, "modules_to_save": ["lm_head"]},
    "saved embedding": {**SAVED, "modules_to_save": ["embed_tokens"]},
    "saved both": {**SAVED, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens of each": {
        **SAVED,
        "trainable_token_indices": {"embed_tokens": [3, 60], "lm_head": [5]},
    },
}
TIED: dict[str, dict[str, Any]] = {
    "tied by PEFT": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved, tied by PEFT": {
        **SAVED,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tokens": {**SAVED, "trainable_token_indices": [3, 5, 60]},
    "neither": SAVED,
}


def adapter_of(model_type: str, places: dict[str, Any], folder: Path) -> Path:
    """Save an adapter with random weights, in the names of a family; return the folder."""
    own = NAMES.get(model_type, {})

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {own.get(name, name): indices for name, indices in value.items()}
        if isinstance(value, list):
            return [own.get(name, name) for name in value]
        return value

    config = LoraConfig(r=3, lora_alpha=6, **{key: named(value) for key, value in places.items()})
    wrapped = get_peft_model(tiny_model(model_type), config)
    source = torch.Generator().manual_seed(3)
    trained = ("lora_", "modules_to_save", "trainable_tokens_delta")
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if any(part in name for part in trained):
                parameter += 0.1 * torch.randn(parameter.shape, generator=source)
    wrapped.save_pretrained(folder)
    return folder


def by_peft(model_type: str, adapter: Path) -> Tensor:
    """Return the logits of PEFT's own forward pass, with the adapter not merged."""
    wide = tiny_model(model_type, torch.float64)
    return logits(PeftModel.from_pretrained(wide, adapter).eval())


@TYPES
@pytest.mark.parametrize("case", [*UNTIED, *TIED])
def test_merged_embeddings_give_the_logits_of_peft(
    case: str, model_type: str, tmp_path: Path
) -> None:
    adapter = adapter_of(model_type, (UNTIED | TIED)[case], tmp_path / "adapter")
    expected = by_peft(model_type, adapter)
    plain = tiny_model(model_type, torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Model (with|has) `tie_word|Input and output embeddings")
        merged = merge_adapter(plain, str(adapter), read_adapter(str(adapter)))
    assert far(logits(tiny_model(model_type, torch.float64)), expected) > 1e-2
    assert far(logits(merged), expected) < 1e-6
    # PEFT does not find GPT-2's embedding by its name, and ties nothing there.
    tied = case in TIED and not (model_type == "gpt2" and "tied by PEFT" in case)
    head, embedding = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert (head is embedding) == tied
    assert bool(merged.config.get_text_config().tie_word_embeddings) == tied
    merged.tie_weights()
    assert far(logits(merged), expected) < 1e-6


def test_the_flags_of_a_frozen_model_are_kept_when_its_embeddings_are_untied(
    tmp_path: Path,
) -> None:
    adapter = adapter_of("qwen2", UNTIED["head"], tmp_path / "adapter")
    model = tiny_model("qwen2").requires_grad_(False)
    merged = merge_adapter(model, str(adapter), read_adapter(str(adapter)))
    assert not any(parameter.requires_grad for parameter in merged.parameters())


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "gemma3"])
@pytest.mark.parametrize("case", ["head", "both", "tokens of each", "tied by PEFT"])
def test_an_export_contains_what_an_adapter_untied(
    case: str, model_type: str, tmp_path: Path
) -> None:
    base = saved_base(model_type, tmp_path / "base")
    adapter = adapter_of(model_type, (UNTIED | TIED)[case], tmp_path / "adapter")
    edited = load(str(base), adapter=adapter)
    patch = random_patch(edited, 3)
    edited.apply(patch)
    export_merged(edited, tmp_path / "merged", adapter=str(adapter))
    assert torch.equal(logits(load(str(tmp_path / "merged")).model), logits(edited.model))
    again = load(str(base), adapter=adapter, patches=[patch])
    assert torch.equal(logits(again.model), logits(edited.model))
