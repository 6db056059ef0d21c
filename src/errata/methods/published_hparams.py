"""Published hyperparameter files: JSON of the reference repositories, YAML of EasyEdit.

Their keys (`layers`, `v_lr`, `mom2_update_weight` …) are mapped to settings. Keys about
module paths or the computation of statistics are reported as unused; unknown keys are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.core.yaml_text import parse_yaml
from errata.methods.base import Method

MANY_PREFIXES = 1000
"""Limit on the number of prefixes, which bounds memory."""


def _lengths(pairs: list[list[int]]) -> list[int]:
    """Turn ROME's [[length, count], …] into one length per prefix."""
    if sum(count for _, count in pairs) > MANY_PREFIXES:
        raise ValueError(f"more than {MANY_PREFIXES} prefixes")
    return [length for length, count in pairs for _ in range(count)]


def _same(value: Any) -> Any:
    return value


KEYS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "layers": (("blocks",), _same),
    "fact_token": (("position",), _same),
    "v_num_grad_steps": (("search", "steps"), _same),
    "v_lr": (("search", "learning_rate"), float),
    "v_loss_layer": (("search", "loss_block"), _same),
    "v_weight_decay": (("search", "weight_decay"), float),
    "clamp_norm_factor": (("search", "clamp"), float),
    "kl_factor": (("search", "kl_weight"), float),
    "context_template_length_params": (("contexts", "prefix_lengths"), _lengths),
    "mom2_adjustment": (("second_moment",), _same),
    "mom2_update_weight": (("moment_weight",), float),
    "nullspace_threshold": (("null_space_threshold",), float),
    "L2": (("ridge",), float),
}
"""Reference key → path of the setting, and the conversion of its value."""

UNUSED = (
    *("alg_name", "model_name", "device", "stats_dir", "model_parallel", "fp16", "P_loc"),
    *("rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp"),
    *("ln_f_module", "lm_head_module", "layer_selection", "batch_size", "max_length"),
    *("mom2_dataset", "mom2_n_samples", "mom2_dtype", "source"),
    *("bf16", "use_chat_template", "enable_thinking", "sequential_edit"),
)
"""Reference keys without a setting: families, corpora and devices are determined elsewhere."""
YAML = (".yaml", ".yml")


class PublishedSettings(NamedTuple):
    """The contents of a hyperparameter file."""

    settings: dict[str, Any]
    """Settings of the method, nested."""
    unused: tuple[str, ...]
    """Keys without a setting in errata, or in this method."""


def read_hparams(path: Path, method: type[Method]) -> PublishedSettings:
    """Read a published file for a method: YAML by its suffix, else JSON.

    Raises `ErrataError` for a file that cannot be read, or keys that nobody knows.
    """
    parse = parse_yaml if path.suffix.lower() in YAML else parse_json
    try:
        values = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read the hyperparameters in {path}: {reason(error)}",
            "give a file such as hparams/MEMIT/gpt2-xl.json of the published code or "
            "hparams/MEMIT/gpt2-xl.yaml of EasyEdit",
        ) from None
    if not isinstance(values, dict):
        raise ErrataError(
            f"{path} holds no object with hyperparameters",
            'write it as {"layers": [17], "v_lr": 0.5, …}',
        )
    unknown = [str(key) for key in values if key not in KEYS and key not in UNUSED]
    made_for = values.get("alg_name")
    other = isinstance(made_for, str) and made_for.casefold() != method.name
    if unknown:
        raise ErrataError(
            f"{path} has keys that are not known: {', '.join(unknown)}",
            *([f"the file is for {made_for}, and the method is {method.label}"] if other else []),
            f"known keys: {', '.join(KEYS)}",
        )
    if other:
        raise ErrataError(
            f"{path} is for {made_for}, not for {method.label}",
            _use(str(made_for), method),
        )
    settings: dict[str, Any] = {}
    unused = []
    for key, value in values.items():
        parts, read = KEYS.get(key, ((), _same))
        if not parts or parts[0] not in method.model_fields:
            unused.append(key)
            continue
        place = settings
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        try:
            place[parts[-1]] = read(value)
        except (TypeError, ValueError, OverflowError):
            raise ErrataError(
                f"{path}: {key} cannot be {value!r:.80}",
                "see a published file, such as hparams/MEMIT/gpt2-xl.json",
            ) from None
    return PublishedSettings(settings, tuple(unused))


def _use(made_for: str, method: type[Method]) -> str:
    from errata.methods import METHODS

    if (name := made_for.casefold()) in METHODS:
        return f"use --method {name}"
    return f"to use its settings for {method.label}, remove alg_name from the file"
