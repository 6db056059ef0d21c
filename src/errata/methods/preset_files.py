"""Preset files: calibrated settings of one method for one model, with their evidence, as JSON.

`errata calibrate` writes them into the user's preset folder; one file can be shared and is given
to `errata edit --preset FILE`. A file is untrusted: every value in it is validated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, field_validator

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason, write_text
from errata.core.settings import Settings

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel


class Architecture(NamedTuple):
    """What published settings depend on: the type of a model and its sizes."""

    model_type: str
    blocks: int
    width: int
    """The hidden size."""
    mlp: int
    """Input width of the MLP's output matrix."""

    def __str__(self) -> str:
        """Name the type and the sizes."""
        return f"{self.model_type}, {self.blocks} blocks, widths {self.width} and {self.mlp}"


class ModelSize(Settings):
    """The sizes by which models of one architecture are told apart."""

    title = "the size of the model"

    blocks: int = Field(ge=1)
    width: int = Field(ge=1)
    """The hidden size."""
    mlp: int = Field(ge=1)
    """Input width of the MLP's output matrix."""
    vocabulary: int = Field(ge=1)
    """Rows of the output embedding."""
    parameters: int = Field(ge=1)


def _architecture(model_type: str, size: ModelSize) -> Architecture:
    return Architecture(model_type, size.blocks, size.width, size.mlp)


class PresetModel(Settings):
    """The model for which settings were found."""

    name: str
    model_type: str
    size: ModelSize
    weights: str = Field(min_length=16)
    """Hash of the weights (see `models.identity`)."""

    @property
    def architecture(self) -> Architecture:
        """The type and sizes that published settings depend on."""
        return _architecture(self.model_type, self.size)


class Figure(Settings):
    """A score with its 95 % confidence interval."""

    model_config = ConfigDict(allow_inf_nan=False)

    value: float
    low: float
    high: float
    n: int


class Evidence(Settings):
    """What shows that the settings work."""

    model_config = ConfigDict(allow_inf_nan=False)

    dataset: str
    """The dataset's name or file name."""
    digest: str
    """Hash of the held-out cases."""
    facts: int = Field(ge=0)
    """Held-out facts, on which the scores were measured."""
    calibrated_on: int = Field(ge=0)
    """Facts on which the settings were chosen."""
    plan: str
    """How the held-out facts were edited."""
    scores: dict[str, Figure]
    """On the held-out facts, after editing."""
    before: dict[str, Figure] = Field(default_factory=dict)
    """On the same facts, before editing."""
    date: str
    versions: dict[str, str]
    command: str | None = None

    def line(self) -> str:
        """Return the main scores in one line."""
        kinds = ("efficacy", "paraphrase", "neighbourhood")
        shown = [
            f"{kind} {100 * figure.value:.0f} %"
            for kind in kinds
            if (figure := self.scores.get(kind)) is not None
        ]
        return ", ".join((*shown, f"{self.facts} held-out facts of {self.dataset}, {self.date}"))


class PresetFile(Settings):
    """Settings of one method for one model, found by calibration."""

    title = "the preset"
    model_config = ConfigDict(allow_inf_nan=False)

    format: Literal[1] = 1
    model: PresetModel
    method: str
    settings: dict[str, Any]
    """Every setting of the method, but those that depend on the machine."""
    scale_free: dict[str, float] = Field(default_factory=dict)
    """Strengths as numbers and relative to the keys (see `Method.scale_free`)."""
    evidence: Evidence
    source: str
    notes: tuple[str, ...] = ()

    @field_validator("settings")
    @classmethod
    def _shallow(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(settings, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            raise ValueError("contains a value that is not plain JSON") from None
        return settings

    @property
    def file_name(self) -> str:
        """The name of its file in a folder of presets: one per model and method."""
        name = re.sub(r"[^\w.-]+", "-", self.model.name.rstrip("/").rpartition("/")[2])[:60]
        return f"{name}-{self.method}-{self.model.weights[:12]}.json"

    def save(self, path: Path) -> Path:
        """Write the preset as a file, whole or not at all; return its path."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_text(path, text + "\n")
        return path


def read_preset(path: Path) -> PresetFile:
    """Read a preset file; raises `ErrataError` for one that is damaged or of another format."""
    from errata.methods import METHODS

    try:
        raw = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read the preset {path}: {reason(error)}",
            "give a file that `errata calibrate` wrote, with --preset FILE",
        ) from None
    if not isinstance(raw, dict) or "evidence" not in raw:
        raise ErrataError(
            f"{path} is not a preset",
            "give a file that `errata calibrate` wrote; a published hyperparameter file is given "
            "with --hparams FILE",
        )
    if raw.get("format") != 1:
        raise ErrataError(
            f"{path} is a preset of format {raw.get('format')!r:.20}, and this version reads "
            "format 1",
            "update errata, or calibrate again",
        )
    try:
        found = PresetFile.of(raw)
        if found.method not in METHODS:
            raise ErrataError(
                f"there is no method {found.method!r:.40}", f"known methods: {', '.join(METHODS)}"
            )
        METHODS[found.method].of(found.settings)
    except ErrataError as error:
        raise ErrataError(f"{path}: {error.message}", *error.hints) from None
    return found


@dataclass(frozen=True)
class ModelIdentity:
    """What presets are found by; the weights are hashed only when they are asked for."""

    model_type: str
    size: ModelSize
    edited: EditedModel

    @classmethod
    def of(cls, edited: EditedModel) -> ModelIdentity:
        """Read the architecture and the sizes of a model."""
        from errata.models.shape import ModelShape

        shape, model = ModelShape.of(edited.model), edited.model
        size = ModelSize(
            blocks=shape.blocks,
            width=shape.width,
            mlp=shape.mlp,
            vocabulary=shape.vocabulary,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        return cls(model.config.model_type, size, edited)

    @property
    def architecture(self) -> Architecture:
        """The type and sizes that published settings depend on."""
        return _architecture(self.model_type, self.size)

    @property
    def weights(self) -> str:
        """The hash of the unedited weights."""
        return self.edited.base.weights

    def fits(self, preset: PresetFile) -> bool:
        """Whether a preset is for this architecture and size."""
        return preset.model.model_type == self.model_type and preset.model.size == self.size

    def is_model_of(self, preset: PresetFile) -> bool:
        """Whether a preset is for these weights."""
        from errata.models.identity import same_weights

        return same_weights(preset.model.weights, self.weights)

    def named(self, name: str) -> PresetModel:
        """Return the identity as it is stored in a preset."""
        return PresetModel(
            name=name, model_type=self.model_type, size=self.size, weights=self.weights
        )


def stored_presets(folder: Path) -> Mapping[Path, PresetFile | ErrataError]:
    """Return the presets in a folder by path, the latest first; damaged files as their error."""
    found: dict[Path, PresetFile | ErrataError] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = read_preset(path)
        except ErrataError as error:
            found[path] = error
    return dict(sorted(found.items(), key=lambda item: _date(item[1]), reverse=True))


def _date(preset: PresetFile | ErrataError) -> str:
    return preset.evidence.date if isinstance(preset, PresetFile) else ""
