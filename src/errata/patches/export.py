"""Export: an edited model as what others load: a PEFT LoRA folder, or a plain checkpoint.

Folders are written beside their place and renamed, so that a killed writer leaves nothing that
looks whole. Each holds a card with the recipe (see `card`) and the patches that it was made of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from errata.core.errors import ErrataError
from errata.core.files import write_safetensors, write_text, writing_folder
from errata.core.text import counted
from errata.models.families import weight_of
from errata.models.identity import model_hash
from errata.models.loading import quiet
from errata.models.precision import solving_device
from errata.patches.adapter import CONFIG_FILE, find_tuned, read_adapter
from errata.patches.card import write_record
from errata.patches.edited_model import EditedModel
from errata.patches.lora import (
    SERVED_RANKS,
    padded,
    peft_config,
    peft_tensors,
    served_rank,
    stacked,
    truncated,
)
from errata.patches.update import Update
from errata.patches.weight_patch import change_lost


@dataclass(frozen=True)
class Export:
    """What was written, and what it lost."""

    target: Literal["lora", "merged"]
    path: Path
    ranks: Mapping[str, int]
    """Per weight, the rank of its LoRA; empty for a merged checkpoint."""
    loss: Mapping[str, float]
    """Per weight, the share of Δ that is missing: to a lower rank, or to the model's dtype."""
    notes: tuple[str, ...]
    """What a reader should know."""
    below: int = 0
    """Patches below the adapter, or in the tuned checkpoint, that a merged one carries as well."""

    @property
    def rank(self) -> int | None:
        """The highest rank of a LoRA, None for a merged checkpoint."""
        return max(self.ranks.values(), default=None)


def export_lora(
    edited: EditedModel,
    folder: str | Path,
    *,
    rank: int | None = None,
    rank_pattern: bool = False,
    adapter: str | None = None,
    command: str | None = None,
) -> Export:
    """Write the model's patches as a PEFT LoRA folder, float32, exact unless `rank` is given.

    Weights of lower rank than others are padded with zeros to one rank, which is what servers
    want, or keep their own with `rank_pattern`. `adapter` names what was merged below the
    patches, for the card. Raises `ErrataError` when there is no patch or the folder is not empty.
    """
    if not edited.patches:
        raise no_patch(adapter)
    _check_lora(edited)
    if rank is not None and rank < 1:
        raise ErrataError(f"a rank of {rank} leaves nothing", "give a rank of at least 1")
    factors, loss = {}, {}
    device = solving_device(edited.model.device)
    for name, updates in _updates_of(edited).items():
        B, A = stacked(updates)
        factors[name], loss[name] = ((B, A), 0.0)
        if rank is not None and rank < len(A):
            factors[name], loss[name] = truncated(B.to(device), A.to(device), rank)
    ranks = {name: len(A) for name, (_, A) in factors.items()}
    top = max(ranks.values())
    if not rank_pattern:
        factors = {name: padded(B, A, top) for name, (B, A) in factors.items()}
    export = Export("lora", Path(folder), ranks, loss, _lora_notes(top, loss, adapter))
    whole = None if adapter is None else find_tuned(adapter).checkpoint
    config = peft_config(
        edited.model, whole or edited.name, {name: len(A) for name, (_, A) in factors.items()}
    )
    with writing_folder(Path(folder)) as temporary:
        write_safetensors(
            temporary / "adapter_model.safetensors", peft_tensors(factors), {"format": "pt"}
        )
        write_text(temporary / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        write_record(temporary, edited, _facts(export), adapter, command)
    return export


def export_merged(
    edited: EditedModel,
    folder: str | Path,
    *,
    adapter: str | None = None,
    command: str | None = None,
) -> Export:
    """Write the model with its patches as a plain Hugging Face checkpoint, in the model's dtype.

    `adapter` names what was merged below the patches, for the card. Raises `ErrataError` when
    the folder is not empty or cannot be written.
    """
    loss = _swallowed(edited)
    notes = []
    if max(loss.values(), default=0.0) > 0.01:
        notes.append(
            f"{100 * max(loss.values()):.0f} % of the change is lost in {edited.model.dtype}; "
            "export in float32 (--dtype float32), or as a LoRA, which is kept beside the weights"
        )
    if left := _left_out(edited):
        notes.append(
            f"a checkpoint holds weights alone, and this one leaves out {left}; "
            "errata applies them from `patches/`, after the checkpoint, with --allow-base"
        )
    below = () if adapter is None else find_tuned(adapter).below
    export = Export("merged", Path(folder), {}, loss, tuple(notes), len(below))
    with writing_folder(Path(folder)) as temporary:
        with quiet():
            edited.model.save_pretrained(temporary)
            edited.tokenizer.save_pretrained(temporary)
        facts = {**_facts(export), "weights": model_hash(edited.model)}
        write_record(temporary, edited, facts, adapter, command, below)
    return export


def no_patch(adapter: str | None) -> ErrataError:
    """Say that there is no patch to export, and what of an adapter can be; raises if it is none."""
    if adapter is None:
        return ErrataError("there is no patch to export", "name one: --patch P")
    tuned = find_tuned(adapter)
    if tuned.adapter is not None:
        read_adapter(tuned.adapter)
    whole = tuned.checkpoint is not None
    kind, place = ("a whole checkpoint", "in") if whole else ("an adapter", "below")
    held = f"; those {place} it ({len(tuned.below)}) go where it goes" if tuned.below else ""
    return ErrataError(
        f"there is no patch on top of {adapter} to export as a LoRA{held}",
        f"it is {kind} already: copy {tuned.checkpoint or tuned.adapter}",
        "all of it as one checkpoint: --to merged DIR",
    )


def _left_out(edited: EditedModel) -> str:
    """Count the edits that are no weight patches, by kind."""
    kinds = Counter(patch.kind for patch in edited.patches if patch.kind != "weight")
    return ", ".join(counted(count, f"{kind} patch", "es") for kind, count in kinds.items())


def _check_lora(edited: EditedModel) -> None:
    """Raise `ErrataError` for what no LoRA can hold: other kinds, weights of no linear layer."""
    if left := _left_out(edited):
        raise ErrataError(
            f"a LoRA holds weight patches alone, and there is {left} on the model",
            "leave it out, or export a merged checkpoint, which says what it leaves out: "
            "--to merged DIR",
        )
    for name in _updates_of(edited):
        module, _ = weight_of(edited.model, name)
        if not isinstance(module, nn.Linear | Conv1D) or not name.endswith(".weight"):
            raise ErrataError(
                f"{name} is the weight of no linear layer, and a LoRA holds those alone",
                "export a merged checkpoint: --to merged DIR",
            )


def _updates_of(edited: EditedModel) -> dict[str, list[Update]]:
    names = sorted({name for patch in edited.weight_patches for name in patch.updates})
    return {
        name: [patch.updates[name] for patch in edited.weight_patches if name in patch.updates]
        for name in names
    }


def _lora_notes(top: int, loss: Mapping[str, float], adapter: str | None) -> tuple[str, ...]:
    notes = []
    if served_rank(top) is None:
        notes.append(
            f"rank {top} is more than servers accept (vLLM: {SERVED_RANKS[-1]} at most); "
            f"--rank {SERVED_RANKS[-1]} writes one that they take, --to merged a checkpoint"
        )
    if max(loss.values()) > 0:
        notes.append(f"the lower rank loses up to {100 * max(loss.values()):.2g} % of a weight's Δ")
    if adapter is not None:
        notes.append(
            f"this LoRA goes on top of the model with the adapter {adapter} merged; "
            "--to merged writes all of it as one"
        )
    return tuple(notes)


def _facts(export: Export) -> dict[str, Any]:
    return {
        "target": export.target,
        "ranks": dict(export.ranks),
        "loss": dict(export.loss),
        "notes": list(export.notes),
    }


def _swallowed(edited: EditedModel) -> dict[str, float]:
    """Return, per weight, the share of the patches' change that the model's dtype loses."""
    with edited.without_patches():
        originals = {
            name: weight_of(edited.model, name)[1].detach().clone() for name in _updates_of(edited)
        }
    return change_lost(edited.model, originals, edited.weight_patches)
