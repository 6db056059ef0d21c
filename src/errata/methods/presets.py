"""Presets: settings per model and method, as published or as tuned for the demo model.

They are data (`presets.json`), each with its source and its known defects. For a model without
a preset, blocks are guessed from the depth, with a warning.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

from errata.methods.base import Method

M = TypeVar("M", bound=Method)


class Preset(NamedTuple):
    """Settings for one model and method, and where they come from."""

    settings: dict[str, Any]
    source: str
    notes: tuple[str, ...]
    defect: str | None
    """A defect of the published code with which the settings were tuned."""


@cache
def presets() -> dict[str, dict[str, Preset]]:
    """Return all presets, by model and then by method."""
    data = json.loads(files("errata.assets").joinpath("presets.json").read_text(encoding="utf-8"))
    return {
        model: {
            name: Preset(entry["settings"], entry["source"], tuple(entry["notes"]), entry["defect"])
            for name, entry in methods.items()
        }
        for model, methods in data.items()
    }


def resolve_settings(
    method: type[M], model_name: str, block_count: int, given: dict[str, Any]
) -> tuple[M, str, tuple[str, ...]]:
    """Return the method with the model's preset, overridden by `given`, its source, and warnings.

    Raises `ErrataError` for invalid settings and for blocks that the model does not have.
    """
    name = model_name.rstrip("/").rpartition("/")[2]
    preset = presets().get(name, {}).get(method.name)
    if preset is not None:
        values, source, notes = preset.settings, preset.source, preset.notes
        if preset.defect is not None:
            notes += (f"tuned with a defect of the published code, absent here: {preset.defect}",)
    else:
        values, source, notes = method.defaults_for(block_count), "defaults", ()
        if "blocks" in values and "blocks" not in given:
            block, are = ("block", "is") if len(values["blocks"]) == 1 else ("blocks", "are")
            notes = (
                f"no preset for {name}: {block} {_list(values['blocks'])} {are} a guess by depth; "
                f"`errata trace {model_name} --dataset NAME --recommend` finds better ones, "
                "--blocks sets them",
            )
    settled = method.settled(values, given)
    return settled, source, notes + settled.check_model(block_count)


def check_settings(method: type[Method], given: dict[str, Any]) -> None:
    """Raise `ErrataError` for invalid settings of a method, as far as no model is needed."""
    method.settled(given)


def _list(blocks: Any) -> str:
    return ",".join(str(block) for block in blocks)
