"""Adapters: a PEFT LoRA or DoRA folder put on top of a model, merged into its weights.

    LoRA  W ← W + s B A                          (arXiv 2106.09685, eq. 3)
    DoRA  W ← m (W + s B A) / ‖W + s B A‖        (arXiv 2402.09353, eq. 5)

Merged, since editors read and write plain weights at their usual names. Only this module
imports `peft`, which merges in the model's dtype and leaves what it touched frozen; the
second is undone here.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from errata.errors import ErrataError

KINDS = ("lora", "dora")
CONFIG_FILE = "adapter_config.json"
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_adapter(source: str | Path) -> bool:
    """Tell whether a path is an adapter's folder, which is no model of its own."""
    return os.path.isfile(Path(source) / CONFIG_FILE)


def read_adapter(adapter: str, kind: str | None = None) -> Any:
    """Read an adapter's configuration, from a folder or the Hub, and check its kind.

    Raises `ErrataError` when `peft` is not installed, there is no such adapter, it is neither
    LoRA nor DoRA, or it is not of the `kind` that is asked for.
    """
    check_kind(kind)
    try:
        from peft import PeftConfig
    except ImportError:
        raise ErrataError(
            "adapters need the library peft, which is not installed", "pip install 'errata[tune]'"
        ) from None
    try:
        if not is_adapter(adapter) and not _HUB_NAME.fullmatch(adapter):
            raise ValueError(f"there is no {Path(adapter) / CONFIG_FILE}")
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ErrataError(
            f"cannot load the adapter {adapter!r}: {_reason(error)}",
            f"give a folder with {CONFIG_FILE} and adapter_model.safetensors",
            "no adapter at all is an empty path",
        ) from None
    found = _kind_of(config)
    if found is None:
        raise ErrataError(
            f"the adapter {adapter!r} is of another kind: {_name(config.peft_type)}",
            f"known kinds: {', '.join(KINDS)}",
        )
    if kind is not None and kind != found:
        raise ErrataError(
            f"the adapter {adapter!r} is {_title(found)}, not {_title(kind)}",
            f"say --adapter-kind {found} (in Python: adapter_kind={found!r}), or leave it out",
        )
    return config


def check_kind(kind: str | None) -> None:
    """Raise `ErrataError` unless `kind` is None or one that is known."""
    if kind is not None and kind not in KINDS:
        raise ErrataError(
            f"there is no kind of adapter {kind!r}", f"choose one of {', '.join(KINDS)}"
        )


def merge_adapter(model: PreTrainedModel, adapter: str, config: Any) -> PreTrainedModel:
    """Merge an adapter into the model's weights, in place; return the plain model.

    `config` is what `read_adapter` returned. Raises `ErrataError` when the adapter was made
    for another architecture, is damaged, or holds numbers that are not finite.
    """
    from peft import PeftModel

    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            # What PEFT calls in Transformers is its business, no user's.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = PeftModel(model, config)
            found = wrapped.load_adapter(adapter, "default", is_trainable=False)
        if lost := [*found.missing_keys, *found.unexpected_keys]:
            raise ValueError(f"{len(lost)} of its tensors do not fit, {lost[0]} among them")
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ErrataError(
            f"cannot put the adapter {adapter!r} on this model: {_reason(error)}",
            f"was it made for another model? it names {config.base_model_name_or_path or 'none'}",
        ) from None
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.is_floating_point()))
    return merged


def _kind_of(config: Any) -> str | None:
    if _name(config.peft_type) != "LORA":
        return None
    return "dora" if config.use_dora else "lora"


def _name(peft_type: Any) -> str:
    return str(getattr(peft_type, "value", peft_type))


def _title(kind: str) -> str:
    return {"lora": "LoRA", "dora": "DoRA"}[kind]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
