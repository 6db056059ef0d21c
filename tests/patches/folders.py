"""What the export tests share: base models on disk, an adapter that PEFT trained, logits."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.patches.edited_model import EditedModel
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from tiny import SENTENCES, tiny_model, tiny_tokenizer

IDS = torch.tensor([tiny_tokenizer()(text)["input_ids"][:16] for text in SENTENCES[:3]])
TARGETS = {
    "gpt2": ["c_fc", "c_attn"],
    "gptj": ["fc_in", "q_proj"],
    "gpt_neox": ["dense_h_to_4h", "query_key_value"],
    "starcoder2": ["c_fc", "q_proj"],
    "gpt_bigcode": ["c_fc", "c_attn"],
    "gpt_neo": ["c_fc", "q_proj"],
    "falcon": ["dense_h_to_4h", "query_key_value"],
    "bloom": ["dense_h_to_4h", "query_key_value"],
    "opt": ["fc1", "q_proj"],
    "glm": ["gate_up_proj", "q_proj"],
    "glm4": ["gate_up_proj", "q_proj"],
    "phi": ["fc1", "q_proj"],
    "phi3": ["gate_up_proj", "qkv_proj"],
}


def saved_base(model_type: str, folder: Path) -> Path:
    """Save a family's pico model with its tokenizer; return the folder."""
    tiny_model(model_type).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def saved_adapter(model_type: str, folder: Path, *, dora: bool = False) -> Path:
    """Save an adapter of PEFT's own, with random weights, for a pico model; return the folder."""
    targets = TARGETS.get(model_type.partition(",")[0], ["up_proj", "q_proj"])
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=dora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wrapped = get_peft_model(tiny_model(model_type), config)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=source)
    wrapped.save_pretrained(folder)
    return folder


def with_adapter(model_type: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a fresh pico model with an adapter on top, as PEFT itself loads it, unmerged."""
    return PeftModel.from_pretrained(tiny_model(model_type, dtype), folder).eval()


@torch.no_grad()
def logits(model: nn.Module | PreTrainedModel) -> Tensor:
    """Return the logits of a few sentences."""
    out: Tensor = model(input_ids=IDS).logits
    return out


def far(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, in units of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def dense(patch: WeightPatch) -> WeightPatch:
    """Return the patch with every Δ kept whole."""
    updates = {n: Update(None, u.delta(), u.K) for n, u in patch.updates.items()}
    return WeightPatch(updates, patch.provenance)


def changed(edited: EditedModel, base: Tensor) -> float:
    """Return how far an edited model's logits are from those before."""
    return far(logits(edited.model), base)
