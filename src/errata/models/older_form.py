"""The JSON files that Transformers 5 writes, in the form that Transformers 4 reads as well.

Version 4 does not know `rope_parameters`: it takes a default of 10000 for θ and drops the scaling.
Nor does it know the tokenizer class `TokenizersBackend`. Version 5 still reads both older forms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from errata.core.files import parse_json, write_text

BACKEND, FAST = "TokenizersBackend", "PreTrainedTokenizerFast"
"""The class of a fast tokenizer of no particular model, in versions 5 and 4."""
NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""GPT-NeoX's names for rotary settings."""
LAYERS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
"""The fields for θ of models with two kinds of attention."""


def write_older_form(folder: Path) -> None:
    """Rewrite config.json and tokenizer_config.json in a folder that Transformers 5 saved."""
    for name, rewrite in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        path = folder / name
        if path.is_file():
            values = parse_json(path.read_text(encoding="utf-8"))
            write_json(path, rewrite(values))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as Transformers does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration, and of those within it, in the older form."""
    values = {
        key: _config(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in values.items()
    }
    if "dtype" in values:
        values["torch_dtype"] = values.pop("dtype")
    older: dict[str, Any]
    rotary = values.get("rope_parameters")
    if not isinstance(rotary, dict):
        return values
    if rotary.keys() == LAYERS.keys():
        older = {field: rotary[kind]["rope_theta"] for kind, field in LAYERS.items()}
        older["rope_scaling"] = _scaling(rotary["full_attention"])
    elif any(isinstance(value, dict) for value in rotary.values()):
        return values  # version 4 has no form for these
    else:
        names = NEOX if values.get("model_type") == "gpt_neox" else {}
        settings = ("rope_theta", "partial_rotary_factor")
        older = {names.get(key, key): rotary[key] for key in settings if key in rotary}
        older["rope_scaling"] = _scaling(rotary)
    del values["rope_parameters"]
    return dict(sorted((values | older).items()))


def _scaling(rotary: dict[str, Any]) -> dict[str, Any] | None:
    """Return all settings but those with a field of their own; None if nothing is scaled."""
    rest = {k: v for k, v in rotary.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return None if rest in ({}, {"rope_type": "default"}) else rest


def _tokenizer(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("tokenizer_class") == BACKEND:
        values["tokenizer_class"] = FAST
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    return values
