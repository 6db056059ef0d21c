"""The card of an export: a README.md with the recipe that reproduces it, and the patches.

The recipe is YAML within the card: base, export, and per patch its method, settings, requests,
versions and command. Long lists are truncated; the files under `patches/` are complete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from errata.core.files import write_text
from errata.models.identity import versions
from errata.patches.base import Edit
from errata.patches.edited_model import EditedModel

SHOWN = 20
"""Maximum number of requests, and of patches, that a card lists."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_USE = {
    "lora": "A LoRA adapter for PEFT, to be loaded on the base model. Its scaling is 1.",
    "merged": "A merged checkpoint, loaded like the base model.",
}
_LIBRARY = {"lora": "peft", "merged": "transformers"}


def write_record(
    folder: Path,
    edited: EditedModel,
    export: dict[str, Any],
    adapter: str | None,
    command: str | None,
    below: Sequence[Edit] = (),
) -> None:
    """Write README.md and `patches/` into an export's folder.

    `export` describes what was written (`target`) and its approximation error; `adapter` was
    merged into the base before the patches were applied; `command` made the export; `below` are
    the patches on which the adapter was tuned.
    """
    patches = [*below, *edited.patches]
    width = max(3, len(str(len(patches))))
    files = [f"patches/patch_{i:0{width}d}.safetensors" for i in range(len(patches))]
    for patch, file in zip(patches, files, strict=True):
        patch.save(folder / file)
    recipe = {
        "base": edited.base.model_dump(),
        **({"adapter": adapter} if adapter is not None else {}),
        "export": {**export, "command": command, "versions": versions()},
        "requests": sum(len(patch.provenance.requests) for patch in patches),
        "patches": _patch_entries(patches, files, len(below)),
    }
    write_text(folder / "README.md", _card(edited, recipe, len(patches), len(below)))


def _patch_entries(patches: list[Edit], files: list[str], below: int) -> list[dict[str, Any]]:
    entries, room = [], SHOWN
    for number, (patch, file) in enumerate(list(zip(patches, files, strict=True))[:SHOWN]):
        made = patch.provenance
        shown = made.requests[:room]
        room -= len(shown)
        entries.append(
            {
                "file": file,
                **({"below_adapter": True} if number < below else {}),
                "kind": patch.kind,
                "digest": patch.digest,
                "method": made.method,
                "settings": dict(made.settings),
                "requests": len(made.requests),
                "first_requests": [f"{each.marked} → {each.target}" for each in shown],
                "weights": list(patch.places),
                "parents": list(made.parents),
                "notes": list(made.notes),
                "versions": dict(made.versions),
                "command": made.command,
            }
        )
    return entries


def _card(edited: EditedModel, recipe: dict[str, Any], patches: int, below: int) -> str:
    target, count = recipe["export"]["target"], recipe["requests"]
    front: dict[str, Any] = {"library_name": _LIBRARY[target], "tags": ["knowledge-editing"]}
    if _HUB_NAME.fullmatch(edited.name):
        front = {"base_model": edited.name, **front}
    asked = [text for entry in recipe["patches"] for text in entry["first_requests"]]
    listed = [f"- {_plain(text)}" for text in asked]
    if count > len(asked):
        listed.append(f"- and {count - len(asked)} more, in `patches/`")
    title = f"{count} fact{'s' * (count != 1)} edited" if patches else "an adapter merged"
    parts = [
        f"---\n{_yaml(front)}---",
        f"# {_plain(Path(edited.name).name)}, {title}",
        f"{_USE[target]} Written by errata. Its patches ({patches}) are in `patches/` and can be "
        "applied, stacked and undone one by one."
        + (f" {below} of them were applied before the adapter was tuned." if below else ""),
        *[f"**Note:** {_plain(note)}." for note in recipe["export"]["notes"]],
        *(["## What was edited", "\n".join(listed)] if listed else []),
        "## Recipe",
        _fenced(_yaml(recipe)),
    ]
    return "\n\n".join(parts) + "\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _plain(text: str) -> str:
    """Return text on one line, with Markdown and HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}yaml\n{text}{fence}"
