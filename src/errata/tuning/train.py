"""Fine-tuning a model in place with PEFT adapters and Transformers' Trainer.

Applied patches are part of the weights that are tuned. Afterwards the model is a plain model again:
the adapter is saved and merged, and gradient flags and train/eval modes are restored. An
interrupted run resumes from its last complete checkpoint and gives bit-identical results: the
Trainer stores the optimizer, schedule, data order and random states, and incomplete checkpoints
are ignored.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.core.errors import ErrataError
from errata.core.progress import Progress, no_progress
from errata.data.instructions import Instruction
from errata.models.quiet import quiet
from errata.patches.edited_model import EditedModel
from errata.patches.weight_patch import add
from errata.tuning.encode import code_rows
from errata.tuning.guards import Projection, ShiftPenalty, check_guards
from errata.tuning.modules import moving
from errata.tuning.settings import TuneSettings
from errata.tuning.trainer import Keeper, last_whole, trainer_for


@dataclass(frozen=True)
class TuningResult:
    """Statistics of a tuning run."""

    moved: tuple[str, ...]
    """Names of the tuned parameters."""
    numbers: int
    """Number of trainable parameters, of the adapter or of the weights."""
    rows: int
    cut: int
    """Truncated rows."""
    dropped: int
    """Rows dropped because truncation removed their answer."""
    steps: int
    losses: tuple[tuple[int, float], ...]
    """(step, training loss)."""
    validation: tuple[tuple[int, float], ...]
    """(step, loss on the validation rows)."""


def tune(
    edited: EditedModel,
    rows: Sequence[Instruction],
    settings: TuneSettings,
    work: Path,
    *,
    adapter: Path | None = None,
    progress: Progress = no_progress,
) -> TuningResult:
    """Fine-tune a model in place; its weight patches become part of its weights.

    Checkpoints are written to `work`, which the caller removes once the result is saved; an adapter
    is also written to `adapter`. Raises `ErrataError` for settings that do not fit the model or its
    patches. If training raises, weights and patches are restored.
    """
    patches, model = tuple(edited.weight_patches), edited.model
    names = check_tuning(edited, settings)
    train, held = _split(rows, settings)
    code = (settings.template, settings.cutoff_len, settings.train_on_inputs)
    coded = code_rows(edited.tokenizer, train, *code)
    aside = code_rows(edited.tokenizer, held, *code).rows if held else []
    if not coded.rows:
        raise ErrataError(
            f"no row has an answer within {settings.cutoff_len} tokens", "raise --cutoff-len"
        )
    penalty = (
        ShiftPenalty.of(model, edited.tokenizer, patches, settings.shift_penalty)
        if settings.shift_penalty
        else None
    )
    projection = Projection.of(model, patches, names) if settings.project else None
    with (
        _restored_on_error(model, names),
        _seeded(settings.seed),
        _tunable(model, names, settings) as wrapped,
    ):
        if projection is not None:
            projection()
        trainer = trainer_for(wrapped, edited.tokenizer, coded.rows, aside, settings, work)
        trainer.penalty = penalty
        trainer.add_callback(Keeper(progress, projection))
        with quiet():
            trainer.train(resume_from_checkpoint=last_whole(work))
        numbers = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        if adapter is not None and settings.method != "full":
            wrapped.save_pretrained(adapter)
    for patch in patches if settings.reapply else ():
        for name, update in patch.updates.items():
            add(model, name, update.delta())
    edited.bake()
    history = trainer.state.log_history
    return TuningResult(
        names,
        numbers,
        len(coded.rows),
        coded.cut,
        coded.dropped,
        trainer.state.global_step,
        tuple((each["step"], each["loss"]) for each in history if "loss" in each),
        tuple((each["step"], each["eval_loss"]) for each in history if "eval_loss" in each),
    )


def check_tuning(edited: EditedModel, settings: TuneSettings) -> tuple[str, ...]:
    """Return the names of the trained parameters; raises `ErrataError` for unsuitable settings."""
    names = moving(edited.model, settings, edited.weight_patches)
    check_length(edited.model, settings)
    check_guards(settings, edited.weight_patches, names)
    return names


def _split(
    rows: Sequence[Instruction], settings: TuneSettings
) -> tuple[list[Instruction], list[Instruction]]:
    """Split off the validation rows, drawn with the seed."""
    order = list(rows)
    if settings.validation >= len(order):
        raise ErrataError(
            f"{settings.validation} of {len(order)} rows are held out; none is left for training",
            "hold out fewer: --validation N",
        )
    if settings.validation:
        random.Random(settings.seed).shuffle(order)
    return order[settings.validation :], order[: settings.validation]


def check_length(model: PreTrainedModel, settings: TuneSettings) -> None:
    """Raise `ErrataError` if the cutoff exceeds the model's context length."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and settings.cutoff_len > most:
        raise ErrataError(
            f"rows of {settings.cutoff_len} tokens exceed the model's context of {most}",
            f"truncate them: --cutoff-len {most}",
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random generators within the block and restore their states afterwards.

    FutureWarnings of libraries are suppressed within the block.
    """
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002, the Trainer's own kind
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            # Deprecated calls between these libraries are of no concern to users.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


@contextmanager
def _restored_on_error(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Write the named parameters back if the block raises; the copies are kept in CPU memory."""
    parameters = {name: model.get_parameter(name) for name in names}
    copies = {name: each.detach().to("cpu", copy=True) for name, each in parameters.items()}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(copies[name])
        raise


@contextmanager
def _tunable(model: PreTrainedModel, names: Sequence[str], settings: TuneSettings) -> Iterator[Any]:
    """Yield the model with exactly the named parameters trainable.

    An adapter is merged if the block succeeds, and unloaded if it raises. Gradient flags and
    train/eval modes are restored.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    config = model.config.get_text_config()
    cache = config.use_cache
    wrapped: Any = None
    try:
        config.use_cache = False
        if settings.method == "full":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in set(names))
            yield model
        else:
            wrapped = _with_adapter(model, names, settings)
            yield wrapped
            trained, wrapped = wrapped, None
            merged = trained.merge_and_unload(safe_merge=True)
            assert merged is model
    finally:
        if wrapped is not None:
            wrapped.unload()
        config.use_cache = cache
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_disable()
            model.disable_input_require_grads()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _with_adapter(model: PreTrainedModel, names: Sequence[str], settings: TuneSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ErrataError(
            "tuning an adapter requires peft, which is not installed",
            "pip install 'errata-lm[tune]'",
        ) from None
    paths = [name.removesuffix(".weight") for name in names]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=paths,
        use_dora=settings.method == "dora",
        fan_in_fan_out=isinstance(model.get_submodule(paths[0]), Conv1D),
        bias="none",
        task_type="CAUSAL_LM",
    )
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
    return get_peft_model(model, config)
