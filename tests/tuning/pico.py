"""Pico models with an edit on them, rows to tune on, and quick settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.data.instructions import Instruction
from errata.models.families import family_of
from errata.patches.base import Base, Provenance
from errata.patches.edited_model import EditedModel, load
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.tuning.settings import TuneSettings
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

ROWS = [Instruction(instruction=text[:30], output=text[30:50]) for text in SENTENCES]
QUICK: dict[str, Any] = {
    "rank": 3,
    "alpha": 6,
    "learning_rate": 0.01,
    "batch_size": 4,
    "max_steps": 3,
    "template": "plain",
    "cutoff_len": 48,
}
EDITED = (1, 2)
"""The blocks that `pico_patch` changes."""


def quick(**given: Any) -> TuneSettings:
    return TuneSettings.of({**QUICK, **given})


def pico(model_type: str = "llama") -> EditedModel:
    return EditedModel(tiny_model(model_type), tiny_tokenizer(), f"tiny-{model_type}")


def pico_on_disk(folder: Path) -> EditedModel:
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load(str(folder))


def pico_patch(edited: EditedModel) -> WeightPatch:
    """A patch of random factors for two facts, in blocks 1 and 2."""
    source, family, updates = torch.Generator().manual_seed(3), family_of(edited.model), {}
    d = edited.model.config.get_text_config().hidden_size
    for block in EDITED:
        width = family.mlp_out(edited.model, block).weight.numel() // d
        R = 0.05 * torch.randn(d, 2, generator=source)
        K = torch.randn(width, 2, generator=source)
        updates[family.weight_name(block)] = Update.of(R, K.T.clone(), K)
    base = Base(**edited.base.model_dump())
    made = Provenance(base=base, method="none", settings={}, requests=FACTS[:2])
    return WeightPatch(updates, made)


def weights(edited: EditedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in edited.model.named_parameters()}


def moved(before: dict[str, Tensor], edited: EditedModel) -> set[str]:
    """The parameters that changed, and whether the same ones are still there."""
    after = weights(edited)
    assert list(after) == list(before)
    return {name for name in before if not torch.equal(before[name], after[name])}
