"""How to fine-tune: one class, from which flags, recipes and provenance come. No torch here.

LoRA: arXiv 2106.09685, DoRA: 2402.09353. `PRESETS` holds what the edit-decay study (2511.05852)
tuned with; what it does not state is as in AGI-Edgerunners/LLM-Adapters, on which it stands.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from errata.core.errors import ErrataError
from errata.core.settings import Settings
from errata.data.templates import TemplateName

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
"""What a matrix of a block does; families whose matrices are fused have one for several."""
DEFAULT_ROLES = ("q", "k", "v", "up", "down")
NAMED_BLOCKS = ("all", "edited", "others")
LEARNING_RATES = {"lora": 3e-4, "dora": 3e-4, "full": 2e-5}


class TuneSettings(Settings):
    """How a model is fine-tuned."""

    method: Literal["lora", "dora", "full"] = "lora"
    """lora or dora: an adapter beside the weights; full: the weights themselves."""
    blocks: str = "all"
    """Tune all blocks, only the `edited` ones, the `others`, or a list like 3,4,5."""
    modules: str | None = None
    """Matrices by what they do: q,k,v,o,gate,up,down; adapters q,k,v,up,down, full everything."""
    rank: int = Field(32, ge=1)
    """Rank of an adapter."""
    alpha: float = Field(64, gt=0)
    """An adapter is scaled by alpha over rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before an adapter."""
    epochs: float = Field(3, gt=0)
    """Times that the rows are gone through."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps, whatever the epochs say."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows per forward pass; gradients of several are added up. All of a batch when not given."""
    learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate; 3e-4 for adapters, 2e-5 for full when not given."""
    warmup_steps: int = Field(100, ge=0)
    """Steps to get there, a tenth of all at most; it falls linearly to 0 afterwards."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    cutoff_len: int = Field(256, ge=2)
    """Rows are cut to so many tokens."""
    train_on_inputs: bool = False
    """Learn the instructions as well, not the answers alone."""
    template: TemplateName = "auto"
    """How a row becomes a prompt: auto, alpaca, llm-adapters, chat or plain."""
    validation: int = Field(0, ge=0)
    """Rows set aside to measure the loss on."""
    gradient_checkpointing: bool = False
    """Keep less in memory and compute it again: slower, for large models."""
    save_every: int = Field(200, ge=1)
    """Steps between two saves, from which a stopped run goes on; the first is saved early."""
    seed: int = 0
    """Seed of the adapter's start, the order of rows and dropout."""
    shift_penalty: float = Field(0.0, ge=0)
    """Weight of a penalty on how far states move at the edited positions."""
    project: bool = False
    """Keep updates of edited matrices off the directions of the edits' keys (full, lora)."""
    reapply: bool = False
    """Add the patches once more after tuning."""

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, blocks: str) -> str:
        named = blocks.strip().lower()
        parts = named.split(",")
        if named not in NAMED_BLOCKS and not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"is none of {', '.join(NAMED_BLOCKS)} and no list like 3,4,5")
        return named

    @field_validator("modules")
    @classmethod
    def _modules(cls, modules: str | None) -> str | None:
        unknown = [each for each in (modules or "q").split(",") if each.strip() not in ROLES]
        if unknown:
            raise ValueError(f"knows no {', '.join(unknown)}; there are {', '.join(ROLES)}")
        return modules

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.project and self.method == "dora":
            raise ValueError(
                "project: DoRA scales whole rows of a matrix, which no projection of its update "
                "undoes; use lora or full"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size "
                f"({self.micro_batch_size})"
            )
        return self

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The matrices by role; None for whole blocks."""
        if self.modules is not None:
            return tuple(each.strip() for each in self.modules.split(","))
        return None if self.method == "full" else DEFAULT_ROLES

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate or LEARNING_RATES[self.method]

    def steps_of(self, rows: int) -> int:
        """Return how many optimizer steps so many rows make."""
        per_epoch = max(1, -(-rows // self.batch_size))
        return self.max_steps or max(1, int(per_epoch * self.epochs))

    @property
    def guards_edits(self) -> bool:
        """Whether anything is done to keep edits."""
        return self.shift_penalty > 0 or self.project or self.reapply


_STUDY: dict[str, Any] = {
    "rank": 32,
    "alpha": 64,
    "dropout": 0.05,
    "epochs": 3,
    "batch_size": 16,
    "micro_batch_size": 4,
    "cutoff_len": 256,
    "train_on_inputs": True,
    "template": "llm-adapters",
}
_STUDY_ADAPTER = {**_STUDY, "modules": "q,k,v,up,down", "learning_rate": 2e-4}
_DEMO: dict[str, Any] = {"template": "plain", "cutoff_len": 64, "epochs": 4, "warmup_steps": 10}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "study": {
        "lora": _STUDY_ADAPTER,
        "dora": _STUDY_ADAPTER,
        "full": {**_STUDY, "learning_rate": 5e-6},
    },
    "demo": {
        "lora": {**_DEMO, "learning_rate": 2e-3},
        "dora": {**_DEMO, "learning_rate": 2e-3},
        "full": {**_DEMO, "learning_rate": 1e-3},
    },
}
"""Settings by preset, then method: the study's, and those of the embedded model, whose rows are
short."""


def resolve_tuning(given: dict[str, Any], preset: str | None = None) -> TuneSettings:
    """Return the settings of a preset with `given` ones on top.

    Raises `ErrataError` for a preset that is unknown and for settings that are not valid.
    """
    if preset is not None and preset not in PRESETS:
        raise ErrataError(
            f"there is no tuning preset {preset!r}", f"known presets: {', '.join(PRESETS)}"
        )
    method = str(given.get("method", "lora"))
    base = PRESETS[preset].get(method, {}) if preset is not None else {}
    return TuneSettings.of({**base, **given})


class TuneStage(Settings):
    """Tune the model as it stands, edits included; what comes after is about the tuned one."""

    data: str
    """Rows {instruction, input, output}: .json, .jsonl, hf:DATASET, demo-new or demo-same."""
    preset: str | None = None
    """Settings to begin with: study, or demo."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the tuning, on top of the preset's (see `errata tune`)."""
    mirror: str | None = None
    """A folder with copies of Hub datasets."""

    @model_validator(mode="after")
    def _settles(self) -> Self:
        try:
            resolve_tuning(self.settings, self.preset)
        except ErrataError as error:
            raise ValueError(error.message) from None
        return self

    def resolved(self) -> TuneSettings:
        """Return all settings of the tuning."""
        return resolve_tuning(self.settings, self.preset)
