"""Presets: settings per model, as published or as measured for the demo model.

They are data (`presets.json`), each with its source and what is known to be wrong with it.
A model without one gets blocks by a rule of depth, and is told that this is a guess.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

from errata.core.errors import ErrataError
from errata.methods.closed_form.driver import ClosedForm

M = TypeVar("M", bound=ClosedForm)


class Preset(NamedTuple):
    """Settings for one model and method, and where they come from."""

    settings: dict[str, Any]
    source: str
    notes: tuple[str, ...]
    defect: str | None
    """A fault of the published code that was in place when the settings were tuned."""


@cache
def presets() -> dict[str, dict[str, Preset]]:
    """Return all presets: by model, then by method."""
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
    """Return the method with settings from the model's preset, `given` ones on top.

    Also returned: where the settings come from, and notes a user should read. Raises
    `ErrataError` for settings that are not valid or blocks that the model does not have.
    """
    name = model_name.rstrip("/").rpartition("/")[2]
    preset = presets().get(name, {}).get(method.name)
    if preset is not None:
        values, source, notes = preset.settings, preset.source, preset.notes
        if preset.defect is not None:
            notes += (f"tuned with a defect in place that is not here: {preset.defect}",)
    else:
        values, source, notes = {"blocks": _guess(method, block_count)}, "defaults", ()
        if "blocks" not in given:
            block, are = ("block", "is") if len(values["blocks"]) == 1 else ("blocks", "are")
            notes = (
                f"no preset for {name}: {block} {_list(values['blocks'])} {are} a guess by depth; "
                f"`errata trace {model_name} --dataset NAME --recommend` finds some, "
                "--blocks sets them",
            )
    settled = method.of(merged(merged(method().model_dump(), values), given))
    beyond = [block for block in settled.edited_blocks if not 0 <= block < block_count]
    if beyond:
        raise ErrataError(
            f"there is no block {_list(beyond)}: the model has blocks 0 to {block_count - 1}",
            f"choose blocks between 0 and {block_count - 1}",
        )
    read_after = settled.search.loss_block
    if read_after is not None and read_after >= block_count:
        raise ErrataError(
            f"the loss cannot be read after block {read_after}: "
            f"the model has blocks 0 to {block_count - 1}",
            f"choose --loss-block between 0 and {block_count - 1}, or leave it out for the last",
        )
    if settled.search.precision != "full":
        notes += (
            f"target values are searched with {settled.search.precision} products: faster on some "
            "devices, and not exact",
        )
    return settled, source, notes


def _guess(method: type[ClosedForm], block_count: int) -> tuple[int, ...]:
    first, last = (min(int(share * block_count), block_count - 1) for share in method.depth)
    return tuple(range(first, last + 1))


def _list(blocks: Any) -> str:
    return ",".join(str(block) for block in blocks)


def merged(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings with `given` ones on top."""
    result = dict(values)
    for key, value in given.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result
