"""Adapters: a PEFT LoRA or DoRA folder, merged into a model's weights.

    LoRA  W ← W + s B A                          (arXiv 2106.09685, eq. 3)
    DoRA  W ← m (W + s B A) / ‖W + s B A‖        (arXiv 2402.09353, eq. 5)

Adapters are merged because editing methods read and write plain weights at their usual names.
PEFT merges in the model's dtype and leaves the adapted parameters frozen; `merge_adapter` restores
their `requires_grad`. An adapter on one of two tied embeddings unties them (see `models.tied`).

An adapter that was tuned on an edited model belongs on top of that model's patches. A record in
its folder names them (`below`), and the patches to add again after merging (`above`). In a fully
tuned checkpoint both are part of the weights; its record names the patches below.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from errata.core.errors import ErrataError, Hint
from errata.core.files import parse_json
from errata.models.families import weight_of
from errata.models.identity import model_hash, same_weights
from errata.models.tied import join_or_untie, separate, tied_weight
from errata.patches.base import ALLOW_BASE, Edit, load_edit
from errata.patches.weight_patch import add, weight_patches, write

ADAPTER_KINDS = ("lora", "dora")
RECORD = "errata.json"
"""File that records the origin of an adapter or checkpoint made by `errata tune`."""
CONFIG_FILE = "adapter_config.json"
ABOUT_TYING = "Model (with|has) `tie_word_embeddings|Input and output embeddings are no longer"
"""PEFT's warnings about adapters on tied embeddings, which `merge_adapter` unties."""
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_adapter(source: str | Path) -> bool:
    """Return whether a path is the folder of an adapter, not of a complete model."""
    return os.path.isfile(Path(source) / CONFIG_FILE)


class TunedFolder(NamedTuple):
    """The content of a folder given as an adapter: an adapter or a full checkpoint."""

    adapter: str | None
    checkpoint: str | None
    below: tuple[Edit, ...] = ()
    """Edits applied to the model when it was tuned; a checkpoint contains the weight patches."""
    above: tuple[Edit, ...] = ()
    """Patches to add again on top of it."""


def find_tuned(source: str) -> TunedFolder:
    """Find the adapter or checkpoint in a run of `errata tune`, or in the folder of either.

    A checkpoint is accepted only with the record of `errata tune` in its folder. Raises
    `ErrataError` for a folder with any other model; any other `source` is returned as the name
    of an adapter.
    """
    for folder in (Path(source), Path(source) / "adapter"):
        if is_adapter(folder):
            return TunedFolder(str(folder), None, *_recorded(folder))
    for folder in (Path(source), Path(source) / "checkpoint"):
        if (folder / "config.json").is_file():
            if not (folder / RECORD).is_file():
                raise ErrataError(
                    f"{folder} is a model, not an adapter",
                    "an adapter is a PEFT folder, or a run or checkpoint of `errata tune`",
                    Hint(
                        f"to use this model, load it: errata.load({str(folder)!r})",
                        f"to use this model, give it as MODEL: {folder}",
                    ),
                )
            return TunedFolder(None, str(folder), *_recorded(folder))
    return TunedFolder(source, None)


def _recorded(folder: Path) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
    """Return the patches below and above a tuned adapter or checkpoint, from its record."""
    if not (folder / RECORD).is_file():
        return (), ()
    try:
        record = parse_json((folder / RECORD).read_text("utf-8"))
        below, above = (list(record[name]) for name in ("below", "above"))
        files = [[folder / str(name) for name in names] for names in (below, above)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ErrataError(
            f"cannot read {folder / RECORD}: {error!r}", "copy the whole folder again"
        ) from None
    lower, upper = (tuple(load_edit(path) for path in paths) for paths in files)
    return lower, upper


def merge_tuned(
    model: PreTrainedModel, tuned: TunedFolder, config: Any, allow_base: bool = False
) -> PreTrainedModel:
    """Add the patches below, merge the adapter, add the patches above, all in place.

    Raises `ErrataError` if a patch below was made for other weights, unless `allow_base`, and
    where `merge_adapter` does.
    """
    assert tuned.adapter is not None
    made_for = {patch.provenance.base.weights for patch in tuned.below}
    weights = model_hash(model) if made_for and not allow_base else ""
    if weights and not all(same_weights(each, weights) for each in made_for):
        raise ErrataError(
            f"the adapter {tuned.adapter!r} was tuned on an edited "
            f"{tuned.below[0].provenance.base.name}, but this is another model",
            *ALLOW_BASE,
        )
    below = weight_patches(tuned.below)
    names = {name for patch in below for name in patch.updates}
    originals = {name: weight_of(model, name)[1].detach().clone() for name in names}
    write(model, originals, below)
    model = merge_adapter(model, tuned.adapter, config)
    for patch in weight_patches(tuned.above):
        for name, update in patch.updates.items():
            add(model, name, update.delta())
    return model


def read_adapter(adapter: str, kind: str | None = None) -> Any:
    """Read an adapter's configuration, from a folder or the Hub, and check its kind.

    Raises `ErrataError` if `peft` is not installed, there is no such adapter, it is neither LoRA
    nor DoRA, or it is not of the requested `kind`.
    """
    check_kind(kind)
    try:
        from peft import PeftConfig
    except ImportError:
        raise ErrataError(
            "adapters need peft, which is not installed",
            "pip install 'errata-lm[tune]'",
        ) from None
    try:
        if not is_adapter(adapter) and not _HUB_NAME.fullmatch(adapter):
            raise ValueError(f"there is no {Path(adapter) / CONFIG_FILE}")
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ErrataError(
            f"cannot load the adapter {adapter!r}: {_reason(error)}",
            f"give a folder with {CONFIG_FILE} and adapter_model.safetensors",
            "to load the model without an adapter, give an empty path",
        ) from None
    found = _kind_of(config)
    if found is None:
        raise ErrataError(
            f"the adapter {adapter!r} is of an unsupported kind: {_name(config.peft_type)}",
            f"supported kinds: {', '.join(ADAPTER_KINDS)}",
        )
    if kind is not None and kind != found:
        raise ErrataError(
            f"the adapter {adapter!r} is {_title(found)}, not {_title(kind)}",
            Hint(
                f"pass adapter_kind={found!r}, or omit it",
                f"use --adapter-kind {found}, or omit it",
            ),
        )
    return config


def check_kind(kind: str | None) -> None:
    """Raise `ErrataError` unless `kind` is None or in `ADAPTER_KINDS`."""
    if kind is not None and kind not in ADAPTER_KINDS:
        raise ErrataError(
            f"unknown kind of adapter {kind!r}", f"choose one of {', '.join(ADAPTER_KINDS)}"
        )


def merge_adapter(model: PreTrainedModel, adapter: str, config: Any) -> PreTrainedModel:
    """Merge an adapter into the model's weights in place and return the plain model.

    `config` is the result of `read_adapter`. Raises `ErrataError` if the adapter was made for
    another architecture, is damaged, or contains non-finite values.
    """
    from peft import PeftModel

    parameters = model.named_parameters(remove_duplicate=False)
    flags = {name: parameter.requires_grad for name, parameter in parameters}
    embeddings, shared = _embeddings(model), tied_weight(model)
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            # PEFT calls deprecated functions of Transformers, which users cannot change.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", ABOUT_TYING, UserWarning)
            wrapped = PeftModel(model, config)
            found = wrapped.load_adapter(adapter, "default", is_trainable=False)
            if lost := [*found.missing_keys, *found.unexpected_keys]:
                raise ValueError(f"{len(lost)} of its tensors do not fit, such as {lost[0]}")
            if _embeddings(model) == embeddings:  # PEFT wrapped neither of them
                shared = None
            if shared is not None:
                separate(wrapped, shared)
            merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
            if shared is not None:
                join_or_untie(merged)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ErrataError(
            f"cannot merge the adapter {adapter!r} into this model: {_reason(error)}",
            "was it made for another model? its base model is "
            f"{config.base_model_name_or_path or 'not recorded'}",
        ) from None
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.is_floating_point()))
    return merged


def _embeddings(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    return model.get_input_embeddings(), model.get_output_embeddings()


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
