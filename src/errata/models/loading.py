"""Loading checkpoints: a model and its tokenizer from a folder or the Hub, with clear errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from errata.core.errors import ErrataError
from errata.core.files import parse_json
from errata.core.progress import Say, say_nothing
from errata.models.bitsandbytes import dequantised, is_four_bit
from errata.models.checkpoint import AGAIN, check_files
from errata.models.families import check_config, family_of
from errata.models.own_code import own_code
from errata.models.precision import ran_out_of_memory
from errata.models.quiet import quiet
from errata.models.sources import (
    MODELS,
    check_quantisation,
    foreign_format,
    similar_folder,
    source_of,
)
from errata.models.tokenizer import load_tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Supported dtypes of weights."""
GENERATION = "generation_config.json"
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Generation settings that are kept where Transformers refuses others."""
GATED = "gated repo"
"""Part of the Hub client's error for a model whose licence was not accepted."""


def first_device() -> str:
    """Return `cuda` when there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pretrained(
    name: str, dtype: torch.dtype | str, say: Say = say_nothing, *, to_edit: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and tokenizer by Hub name, folder, GGUF file, `demo` or `smollm2`.

    `say` reports the conversion of a GGUF file or a checkpoint of bitsandbytes. Raises
    `ErrataError` with the reason when they cannot be loaded or, with `to_edit`, not be edited.
    """
    with quiet():
        source = source_of(name, say)
    with quiet(), _load_errors(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_config(config, to_edit=to_edit)  # before gigabytes are read
    if is_four_bit(getattr(config, "quantization_config", None)) and os.path.isdir(source):
        source = str(dequantised(Path(source), say))
    else:
        check_quantisation(name, source, config)
    tokenizer = load_tokenizer(name, source)
    if os.path.isdir(source):
        check_files(Path(source))
    with quiet(), _load_errors(name):
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            generation_config=_ends_alone(source),
        )
    _check_complete(name, model, info)
    _set_plain_outputs(model)
    return model, tokenizer


@contextmanager
def _load_errors(name: str) -> Iterator[None]:
    """Turn the exceptions of Transformers, which strangers' files cause, into `ErrataError`."""
    try:
        yield
    except ErrataError:
        raise
    except Exception as error:  # any: configurations and weights are run through much foreign code
        if ran_out_of_memory(error):
            raise
        raise _not_loaded(name, error) from None


def _ends_alone(source: str) -> GenerationConfig | None:
    """Return the special tokens of generation settings that Transformers refuses, else None.

    It checks all of them when a model is loaded, of which errata uses the ends of sequence alone.
    """
    try:
        GenerationConfig.from_pretrained(source)
    except OSError:  # none, which Transformers allows
        return None
    except (ValueError, TypeError):
        path = cached_file(source, GENERATION)
        values = parse_json(Path(str(path)).read_text(encoding="utf-8-sig"))
        return GenerationConfig(**{key: values[key] for key in SPECIAL if key in values})
    return None


def _set_plain_outputs(model: PreTrainedModel) -> None:
    """Let forward passes return what they do by default, whatever a checkpoint says."""
    for config in (model.config, model.config.get_text_config()):
        config.return_dict = True
        config.output_attentions = config.output_hidden_states = False
        if family_of(model).experts:
            config.output_router_logits = False


def _check_complete(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raise `ErrataError` unless the weights that were read are those that the model has."""
    for weight, stored, needed in sorted(info["mismatched_keys"]):
        raise ErrataError(
            f"{weight} is {_shape(stored)} in the weights of {name}, and the configuration needs "
            f"{_shape(needed)}",
            "its config.json belongs to another model, or the embedding was resized without it: "
            "load another copy",
        )
    if missing := sorted(info["missing_keys"]):
        raise ErrataError(
            f"the weights of {name} lack {_first(missing)}, which would be initialised at random",
            AGAIN,
        )
    family = family_of(model)
    masks = (f"{family.block_attention}.bias", "masked_bias", "inv_freq")  # of old checkpoints
    unused = [key for key in sorted(info["unexpected_keys"]) if not key.endswith(masks)]
    if unused := [key for key in unused if key.startswith(f"{family.blocks}.")]:
        raise ErrataError(
            f"the configuration of {name} has no place for {_first(unused)}, which would be "
            "ignored",
            "its config.json belongs to another model, or the weights are quantised: load another "
            "copy",
        )


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def _not_loaded(name: str, error: Exception) -> ErrataError:
    """Return the error that explains why a model cannot be loaded."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    cause = f"{first} {more[0].strip()}" if first.endswith(":") and more else first
    if GATED in str(error) or GATED in str(error.__cause__):
        return ErrataError(
            f"{name} is gated: it can be loaded only after accepting its licence",
            f"accept it on https://huggingface.co/{name}, then log in here: hf auth login",
        )
    if found := own_code(name, error) or foreign_format(name):
        return found
    if Path(name).is_dir():
        missing = [] if (Path(name) / "config.json").is_file() else ["it has no config.json"]
        return ErrataError(
            f"the folder {name} contains no model that can be loaded: {(*missing, cause)[0]}",
            "a model folder has config.json, tokenizer.json and model.safetensors",
        )
    return ErrataError(
        f"cannot load {name!r}: there is no such folder, and from the Hub: {cause}",
        *similar_folder(name),
        MODELS,
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


def dtype_named(dtype: torch.dtype | str) -> torch.dtype | str:
    """Return a dtype by its name, or `auto`; raises `ErrataError` for any not in `DTYPES`."""
    named = {str(each).removeprefix("torch."): each for each in DTYPES}
    found = named.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found == "auto" or found in DTYPES:
        return found
    raise ErrataError(
        f"unsupported dtype {str(dtype)!r} for weights", f"choose one of auto, {', '.join(named)}"
    )
