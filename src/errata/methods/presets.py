"""Presets: settings per model and method, as published, as shipped or as found by calibration.

The published ones are data (`presets.json`), each with its source and its known defects, for the
architectures in `preset_models.json`; files of `errata calibrate` ship with errata or lie in the
user's folder (see `preset_files`). They are looked up in this order:

1. the file that is given;
2. the user's presets, then the shipped files, for the same weights;
3. the published presets for the same architecture, size and name;
4. the user's presets, then the shipped files, for the same architecture and size, with a note;
5. the published presets for the same architecture and size, with a note.

A name alone decides nothing: a folder called gpt2-xl may hold any model. For a model without a
preset, blocks are guessed from the depth, with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from errata.core.errors import ErrataError
from errata.core.places import presets_folder
from errata.methods.base import Method
from errata.methods.preset_files import (
    Architecture,
    ModelIdentity,
    PresetFile,
    read_preset,
    stored_presets,
)

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel

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
    """Return the published presets, by model and then by method."""
    return {
        model: {
            name: Preset(entry["settings"], entry["source"], tuple(entry["notes"]), entry["defect"])
            for name, entry in methods.items()
        }
        for model, methods in _asset("presets.json").items()
    }


@cache
def architectures() -> dict[str, Architecture]:
    """Return the architecture of each model in `presets()`."""
    return {name: Architecture(**of) for name, of in _asset("preset_models.json").items()}


def _asset(name: str) -> dict[str, Any]:
    text = files("errata.assets").joinpath(name).read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def shipped_files() -> tuple[PresetFile, ...]:
    """Return the preset files that ship with errata."""
    with as_file(files("errata.assets").joinpath("presets")) as folder:
        return tuple(read_preset(path) for path in sorted(folder.glob("*.json")))


def own_presets() -> dict[Path, PresetFile | ErrataError]:
    """Return the presets in the user's folder by path, damaged files as their error."""
    return dict(stored_presets(presets_folder()))


def settings_for(
    method: type[M],
    edited: EditedModel,
    given: Mapping[str, Any],
    preset: Path | None = None,
) -> tuple[M, str, tuple[str, ...]]:
    """Return the method for a loaded model, the source of its settings, and warnings.

    `preset` is a file to use instead of the presets that are known for the model; `given`
    overrides both. Raises `ErrataError` for invalid settings, for a preset of another method, and
    for blocks that the model does not have.
    """
    identity = ModelIdentity.of(edited)
    if preset is not None:
        found: Preset | None = _given(preset, method, identity)
    else:
        found = _found(method, edited.name, identity, [*_own_files(), *_shipped_files()])
    count, misnamed = identity.size.blocks, _misnamed(edited.name, identity.architecture)
    settled, source, notes = resolve_settings(method, edited.name, count, dict(given), found)
    return settled, source, notes + (misnamed if preset is None else ())


def shipped_settings(
    method: type[M], edited: EditedModel, given: Mapping[str, Any]
) -> tuple[M, str, tuple[str, ...]]:
    """Like `settings_for`, without the user's preset files."""
    identity = ModelIdentity.of(edited)
    preset = _found(method, edited.name, identity, _shipped_files())
    return resolve_settings(method, edited.name, identity.size.blocks, dict(given), preset)


def resolve_settings(
    method: type[M],
    model_name: str,
    block_count: int,
    given: dict[str, Any],
    preset: Preset | None = None,
) -> tuple[M, str, tuple[str, ...]]:
    """Return the method with a preset, overridden by `given`, its source, and warnings.

    Without `preset`, settings are the defaults. Raises `ErrataError` for invalid settings and for
    blocks that the model does not have.
    """
    name = _short(model_name)
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


def _given(path: Path, method: type[Method], identity: ModelIdentity) -> Preset:
    """Return the preset of a file that was named."""
    found = read_preset(path)
    if found.method != method.name:
        raise ErrataError(
            f"{path} is a preset for {found.method}, not for {method.name}",
            f"use --method {found.method}, or another preset",
        )
    if not identity.fits(found):
        note = f"{path} was made for {found.model.name}, which has another architecture or size"
        return _of(found, str(path), note)
    return _of(found, str(path), *(() if identity.is_model_of(found) else (_other(found),)))


def _found(
    method: type[Method],
    name: str,
    identity: ModelIdentity,
    files: Iterable[tuple[str, PresetFile]],
) -> Preset | None:
    """Return the preset that is known for a model, in the order of the module's docstring."""
    of_method = [(where, each) for where, each in files if each.method == method.name]
    fitting = [(where, each) for where, each in of_method if identity.fits(each)]
    for where, each in fitting:
        if identity.is_model_of(each):
            return _of(each, where)
    if (named := _by_name(method, name, identity.architecture)) is not None:
        return named
    calibrated = next((_of(each, where, _other(each)) for where, each in fitting), None)
    return calibrated or _by_size(method, name, identity.architecture)


def published(method: type[Method], name: str, architecture: Architecture) -> Preset | None:
    """Return the published preset for an architecture, None if there is none.

    Where several models share it, `name` decides; a preset of another name has a note.
    """
    return _by_name(method, name, architecture) or _by_size(method, name, architecture)


def _by_name(method: type[Method], name: str, architecture: Architecture) -> Preset | None:
    known = _known(name)
    if known is None or architectures()[known] != architecture:
        return None
    return presets()[known].get(method.name)


def _by_size(method: type[Method], name: str, architecture: Architecture) -> Preset | None:
    for model, methods in presets().items():
        if method.name in methods and architectures()[model] == architecture:
            note = (
                f"the settings were published for {model}, which has the same architecture and "
                f"size as {_short(name)}; `errata calibrate` finds settings for this one"
            )
            return methods[method.name]._replace(notes=(*methods[method.name].notes, note))
    return None


def _known(name: str) -> str | None:
    """Return the model in `presets()` that a name means, in any case of its letters."""
    short = _short(name).casefold()
    return next((model for model in presets() if model.casefold() == short), None)


def _misnamed(name: str, architecture: Architecture) -> tuple[str, ...]:
    """Return the warning for a model that is not the one after which it is called."""
    known = _known(name)
    if known is None or architectures()[known] == architecture:
        return ()
    return (
        f"the presets called {known} are for another model ({architectures()[known]}) and are not "
        f"used: {name} is {architecture}",
    )


def _own_files() -> list[tuple[str, PresetFile]]:
    """Return the user's preset files that can be read, with their paths."""
    own = own_presets().items()
    return [(str(path), each) for path, each in own if isinstance(each, PresetFile)]


def _shipped_files() -> list[tuple[str, PresetFile]]:
    return [("", each) for each in shipped_files()]


def _of(file: PresetFile, where: str = "", *notes: str) -> Preset:
    source = f"{file.source} ({where})" if where else file.source
    return Preset(file.settings, source, (*file.notes, *notes), None)


def _other(file: PresetFile) -> str:
    return (
        f"the preset was made for another checkpoint of this architecture and size, "
        f"{file.model.name} ({file.model.weights[:12]}); `errata calibrate` finds settings for "
        "this one"
    )


def check_settings(method: type[Method], given: dict[str, Any]) -> None:
    """Raise `ErrataError` for invalid settings of a method, as far as no model is needed."""
    method.settled(given)


def _short(model_name: str) -> str:
    return model_name.rstrip("/").rpartition("/")[2]


def _list(blocks: Any) -> str:
    return ",".join(str(block) for block in blocks)
