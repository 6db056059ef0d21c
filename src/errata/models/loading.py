"""Loading checkpoints: a model and its tokenizer from a folder or the Hub, with clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from errata.core.errors import ErrataError
from errata.core.progress import Say, say_nothing
from errata.models.families import check_type
from errata.models.sources import check_quantisation, foreign_format, source_of

UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError),
    *(SafetensorError, UnpicklingError),
)
"""Exceptions that loading a damaged or unsupported checkpoint raises."""
GATED = "gated repo"
"""Part of the Hub client's error for a model whose licence was not accepted."""


def first_device() -> str:
    """Return `cuda` when there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pretrained(
    name: str, dtype: torch.dtype | str, say: Say = say_nothing
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and tokenizer by Hub name, folder, GGUF file, `demo` or `smollm2`.

    `say` reports the conversion of a GGUF file. Raises `ErrataError` with the reason when they
    cannot be loaded.
    """
    with quiet():
        source = source_of(name, say)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source)
            check_type(config.model_type)  # before gigabytes are read
            check_quantisation(name, config)
            tokenizer = AutoTokenizer.from_pretrained(source)
            model, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True
            )
    except UNREADABLE as error:
        raise _not_loaded(name, error) from None
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ErrataError(
            f"the weights of {name} lack {missing[0]}{more}, which would be initialised at random",
            "was its download or export interrupted? load another copy",
        )
    return model, tokenizer


def _not_loaded(name: str, error: Exception) -> ErrataError:
    """Return the error that explains why a model cannot be loaded."""
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    if GATED in str(error) or GATED in str(error.__cause__):
        return ErrataError(
            f"{name} is gated: it can be loaded only after accepting its licence",
            f"accept it on https://huggingface.co/{name}, then log in here: hf auth login",
        )
    if foreign := foreign_format(name):
        return foreign
    if Path(name).is_dir():
        missing = [] if (Path(name) / "config.json").is_file() else ["it has no config.json"]
        return ErrataError(
            f"the folder {name} contains no model that can be loaded: {(*missing, cause)[0]}",
            "a model folder has config.json, tokenizer.json and model.safetensors",
        )
    return ErrataError(
        f"cannot load {name!r}: {cause}",
        "give a Hub name, a folder with config.json and weights, a GGUF file, `smollm2` or `demo`",
        "offline, only folders, GGUF files, cached models, `smollm2` and `demo` can be loaded",
    )


def check_device(device: str | torch.device) -> None:
    """Raise `ErrataError` unless the device is available."""
    with _device_errors(device):
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise ValueError("models on the meta device have no weights")
        torch.empty(1, device=chosen)


def to_device(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    """Move a model to a device; raises `ErrataError` if it cannot be moved there."""
    with _device_errors(device):
        return model.to(torch.device(device))


@contextmanager
def _device_errors(device: str | torch.device) -> Iterator[None]:
    """Turn torch's errors about a device, except out-of-memory errors, into `ErrataError`."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ErrataError(
            f"the model cannot be moved to {str(device)!r}: {str(error).splitlines()[0]}",
            "choose an available device, listed by `errata env`: --device cpu",
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of Transformers within a `with` block."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
