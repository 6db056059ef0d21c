"""Export an edited model for other programs: as a PEFT LoRA folder or a merged checkpoint.

Folders are written under a temporary name and renamed, so that an interrupted export leaves no
folder that looks complete. Each contains a card with the recipe (see `card`) and the patches.
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

from errata.core.errors import ErrataError, Hint
from errata.core.files import write_safetensors, write_text, writing_folder
from errata.core.text import counted
from errata.models.families import weight_of
from errata.models.identity import model_hash
from errata.models.precision import solving_device
from errata.models.saving import save_model
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
    """The written folder and its approximation error."""

    target: Literal["lora", "merged"]
    path: Path
    ranks: Mapping[str, int]
    """Per weight, the rank of its LoRA; empty for a merged checkpoint."""
    loss: Mapping[str, float]
    """Per weight, the relative error of Δ caused by a lower rank or by the model's dtype."""
    notes: tuple[str, ...]
    """Notes for the reader."""
    below: int = 0
    """Number of patches below the adapter or in the tuned checkpoint, also in a merged export."""

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
    """Write the model's patches as a PEFT LoRA folder in float32, exact unless `rank` is given.

    Factors are zero-padded to a common rank, as servers require; with `rank_pattern` each weight
    has its own rank. `adapter` names the adapter merged below the patches, for the card. Raises
    `ErrataError` if there is no patch, a patch is not expressible as a LoRA, or the folder is not
    empty.
    """
    if not edited.patches:
        raise no_patch(adapter)
    _check_lora(edited)
    if rank is not None and rank < 1:
        raise ErrataError(f"the rank {rank} is not positive", "give a rank of at least 1")
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
    """Write the model with its patches as a Hugging Face checkpoint in the model's dtype.

    All files of its source but the weights are copied unchanged (see `models.saving`).
    `adapter` names the adapter merged below the patches, for the card. Raises `ErrataError` if the
    folder is not empty or cannot be written.
    """
    loss = _lost_to_rounding(edited)
    notes = []
    if max(loss.values(), default=0.0) > 0.01:
        notes.append(
            f"{100 * max(loss.values()):.0f} % of the change is lost in {edited.model.dtype}; "
            "export in float32 (--dtype float32), or as a LoRA, which is stored in float32"
        )
    if left := _left_out(edited):
        notes.append(
            f"a checkpoint contains only weights, so {left} could not be merged; "
            "errata applies them from `patches/` to the checkpoint with --allow-base"
        )
    below = () if adapter is None else find_tuned(adapter).below
    export = Export("merged", Path(folder), {}, loss, tuple(notes), len(below))
    with writing_folder(Path(folder)) as temporary:
        save_model(edited.model, edited.tokenizer, temporary)
        facts = {**_facts(export), "weights": model_hash(edited.model)}
        write_record(temporary, edited, facts, adapter, command, below)
    return export


def no_patch(adapter: str | None) -> ErrataError:
    """Return the error for a model without patches, with hints on what can be exported.

    Raises `ErrataError` if `adapter` is not an adapter.
    """
    if adapter is None:
        return ErrataError(
            "there is no patch to export",
            Hint("apply one: errata.load(…, patches=[PATH])", "give one: --patch P"),
        )
    tuned = find_tuned(adapter)
    if tuned.adapter is not None:
        read_adapter(tuned.adapter)
    whole = tuned.checkpoint is not None
    kind, place = ("a full checkpoint", "in") if whole else ("an adapter", "below")
    held = f"; it comes with the patches {place} it ({len(tuned.below)})" if tuned.below else ""
    return ErrataError(
        f"there is no patch on top of {adapter} to export as a LoRA{held}",
        f"it is already {kind}: copy {tuned.checkpoint or tuned.adapter}",
        Hint("for one merged checkpoint, use export_merged", "for one checkpoint: --to merged DIR"),
    )


def _left_out(edited: EditedModel) -> str:
    """Return the numbers of edits that are not weight patches, by kind, in words."""
    kinds = Counter(patch.kind for patch in edited.patches if patch.kind != "weight")
    return ", ".join(counted(count, f"{kind} patch", "es") for kind, count in kinds.items())


def _check_lora(edited: EditedModel) -> None:
    """Raise `ErrataError` for edits that no LoRA can express.

    These are edits that are not weight patches, and weights that are not of a linear layer.
    """
    if left := _left_out(edited):
        raise ErrataError(
            f"a LoRA can only contain weight patches, but the model has {left}",
            Hint(
                "omit it, or use export_merged, which lists what it omits",
                "omit it, or export a merged checkpoint, which lists what it omits: "
                "--to merged DIR",
            ),
        )
    for name in _updates_of(edited):
        module, _ = weight_of(edited.model, name)
        if not isinstance(module, nn.Linear | Conv1D) or not name.endswith(".weight"):
            raise ErrataError(
                f"{name} is not the weight of a linear layer; a LoRA can only change those",
                Hint("use export_merged", "export a merged checkpoint: --to merged DIR"),
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
            f"rank {top} is more than servers accept (vLLM: at most {SERVED_RANKS[-1]}); "
            f"use --rank {SERVED_RANKS[-1]} to truncate it, or --to merged for a checkpoint"
        )
    if max(loss.values()) > 0:
        notes.append(
            f"the relative error of Δ at this rank is up to {100 * max(loss.values()):.2g} %"
        )
    if adapter is not None:
        notes.append(
            f"this LoRA is for the model with the adapter {adapter} merged; "
            "--to merged writes one checkpoint with everything"
        )
    return tuple(notes)


def _facts(export: Export) -> dict[str, Any]:
    return {
        "target": export.target,
        "ranks": dict(export.ranks),
        "loss": dict(export.loss),
        "notes": list(export.notes),
    }


def _lost_to_rounding(edited: EditedModel) -> dict[str, float]:
    """Return, per weight, the share of the change lost to rounding in the model's dtype."""
    with edited.without_patches():
        originals = {
            name: weight_of(edited.model, name)[1].detach().clone() for name in _updates_of(edited)
        }
    return change_lost(edited.model, originals, edited.weight_patches)
