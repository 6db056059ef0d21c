"""Transformers' Trainer, configured for tuning: silent, resumable, with edit guards.

Only complete checkpoints count; those of a killed process are removed.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import TrainingArguments

from errata.core.progress import Progress
from errata.models.tokenizer import pad_id
from errata.tuning.encode import IGNORE
from errata.tuning.guards import Projection, ShiftPenalty
from errata.tuning.settings import TuneSettings

EARLY = 10
"""The first checkpoint is written after this many steps."""
WHOLE = "whole"
"""Marker file of a complete checkpoint."""


def trainer_for(
    wrapped: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    aside: list[dict[str, list[int]]],
    settings: TuneSettings,
    work: Path,
) -> GuardedTrainer:
    """Return a Trainer for tokenised rows; `aside` are the validation rows.

    It writes checkpoints to `work`, prints nothing and reports to no service.
    """
    micro = settings.micro_batch_size or settings.batch_size
    steps = settings.steps_of(len(rows))
    pad = pad_id(tokenizer, tokenizer.eos_token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments = _arguments(wrapped, settings, micro, steps, bool(aside), work)
        trainer = GuardedTrainer(
            model=wrapped,
            args=arguments,
            train_dataset=rows,
            eval_dataset=aside or None,
            data_collator=lambda batch: collate(batch, pad),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(
    wrapped: Any, settings: TuneSettings, micro: int, steps: int, aside: bool, work: Path
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.rate,
        lr_scheduler_type="linear",
        warmup_steps=min(settings.warmup_steps, steps // 10),
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        gradient_checkpointing=settings.gradient_checkpointing,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if aside else "no",
        eval_steps=max(1, min(settings.save_every, steps)) if aside else None,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=next(wrapped.parameters()).device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
    )


def collate(batch: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Pad rows on the right: `input_ids`, `attention_mask`, `labels`, each (rows, longest)."""
    width = max(len(row["input_ids"]) for row in batch)

    def filled(name: str, fill: int) -> Tensor:
        return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in batch])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
    return {
        "input_ids": filled("input_ids", pad),
        "attention_mask": torch.tensor(mask),
        "labels": filled("labels", IGNORE),
    }


class GuardedTrainer(Trainer):
    """A Trainer that adds the shift penalty to its loss."""

    penalty: ShiftPenalty | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss, with the model's outputs if `return_outputs`."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.penalty is None or not model.training:
            return found
        share = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
        more = self.penalty(self.state.global_step) / share
        return (found[0] + more, found[1]) if return_outputs else found + more


class Keeper(TrainerCallback):
    """Reports progress, projects updates, saves early, and marks complete checkpoints."""

    def __init__(self, progress: Progress, projection: Projection | None) -> None:
        self.progress, self.projection = progress, projection

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Project the updates after an optimizer step."""
        if self.projection is not None:
            self.projection()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Report progress and request the early checkpoint."""
        self.progress(state.global_step, state.max_steps)
        if state.global_step == min(EARLY, args.save_steps) < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Mark a checkpoint as complete."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / WHOLE).touch()


def last_whole(work: Path) -> str | None:
    """Return the last complete checkpoint, and remove incomplete ones."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in found if (path / WHOLE).exists()]
    for path in found:
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)
    return str(whole[-1]) if whole else None
