"""Fine-tuning settings, the source of flags, recipe keys and provenance. No torch here.

LoRA: arXiv 2106.09685, DoRA: 2402.09353. `PRESETS` contains the settings of the edit-decay study
(2511.05852); those it does not state are from AGI-Edgerunners/LLM-Adapters, on which it is based.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from errata.core.errors import ErrataError
from errata.core.settings import LARGEST_NUMPY_SEED, Settings
from errata.data.templates import TemplateName

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
"""Roles of a block's matrices; a fused matrix has several roles."""
DEFAULT_ROLES = ("q", "k", "v", "up", "down")
NAMED_BLOCKS = ("all", "edited", "others")
LEARNING_RATES = {"lora": 3e-4, "dora": 3e-4, "full": 2e-5}


class TuneSettings(Settings):
    """Fine-tuning settings."""

    method: Literal["lora", "dora", "full"] = "lora"
    """lora or dora: train an adapter; full: train the weights."""
    blocks: str = "all"
    """Blocks to tune: all, edited, others (all but the edited ones), or a list like 3,4,5."""
    modules: str | None = None
    """Matrices to tune, from q,k,v,o,gate,up,down; default: q,k,v,up,down for adapters, all
    parameters for full tuning."""
    rank: int = Field(32, ge=1)
    """Rank of the adapter."""
    alpha: float = Field(64, gt=0)
    """Scaling of the adapter: alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the adapter's input."""
    epochs: float = Field(3, gt=0)
    """Number of epochs."""
    max_steps: int | None = Field(None, ge=1)
    """Maximum number of optimizer steps; overrides epochs."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows per forward pass, with gradient accumulation (default: the whole batch)."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate (default: 3e-4 for adapters, 2e-5 for full tuning)."""
    warmup_steps: int = Field(100, ge=0)
    """Warm-up steps, at most a tenth of all steps; linear decay to 0 afterwards."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    cutoff_len: int = Field(256, ge=2)
    """Maximum tokens per row; longer rows are truncated."""
    train_on_inputs: bool = False
    """Train on the prompts as well as the answers."""
    template: TemplateName = "auto"
    """Prompt template: auto, alpaca, llm-adapters, chat or plain."""
    validation: int = Field(0, ge=0)
    """Number of rows held out to measure the validation loss."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    save_every: int = Field(200, ge=1)
    """Steps between checkpoints; the first one is written early."""
    seed: int = Field(0, ge=0, le=LARGEST_NUMPY_SEED)
    """Seed of the adapter's initialisation, the order of rows and dropout."""
    shift_penalty: float = Field(0.0, ge=0)
    """Weight of a penalty on hidden-state shifts at the edited positions."""
    project: bool = False
    """Project updates of edited matrices off the edits' keys (full, lora)."""
    reapply: bool = False
    """Add the patches again after tuning."""

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, blocks: str) -> str:
        named = blocks.strip().lower()
        parts = named.split(",")
        if named not in NAMED_BLOCKS and not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"must be one of {', '.join(NAMED_BLOCKS)}, or a list like 3,4,5")
        return named

    @field_validator("modules")
    @classmethod
    def _modules(cls, modules: str | None) -> str | None:
        unknown = [each for each in (modules or "q").split(",") if each.strip() not in ROLES]
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(ROLES)}")
        return modules

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.project and self.method == "dora":
            raise ValueError(
                "project: DoRA rescales whole rows of a matrix, which a projection of its update "
                "cannot undo; use lora or full"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size "
                f"({self.micro_batch_size})"
            )
        return self

    @property
    def roles(self) -> tuple[str, ...] | None:
        """Roles of the trained matrices; None for whole blocks."""
        if self.modules is not None:
            return tuple(each.strip() for each in self.modules.split(","))
        return None if self.method == "full" else DEFAULT_ROLES

    @property
    def rate(self) -> float:
        """The resolved peak learning rate."""
        return self.learning_rate or LEARNING_RATES[self.method]

    def steps_of(self, rows: int) -> int:
        """Return the number of optimizer steps for a number of rows."""
        per_epoch = max(1, -(-rows // self.batch_size))
        return self.max_steps or max(1, int(per_epoch * self.epochs))

    @property
    def guards_edits(self) -> bool:
        """Whether any guard is enabled."""
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
"""Settings by preset, then method: the study's, and the demo model's, whose rows are short."""


def resolve_tuning(given: dict[str, Any], preset: str | None = None) -> TuneSettings:
    """Return the settings of a preset, overridden by `given`.

    Raises `ErrataError` for an unknown preset and for invalid settings.
    """
    if preset is not None and preset not in PRESETS:
        raise ErrataError(
            f"there is no tuning preset {preset!r}", f"known presets: {', '.join(PRESETS)}"
        )
    method = str(given.get("method", "lora"))
    base = PRESETS[preset].get(method, {}) if preset is not None else {}
    return TuneSettings.of({**base, **given})


class TuneStage(Settings):
    """Fine-tune the edited model; later stages use the tuned model."""

    data: str
    """Rows {instruction, input, output}: .json, .jsonl, hf:DATASET, demo-new or demo-same."""
    preset: str | None = None
    """Preset to start from: study or demo."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Fine-tuning settings, overriding the preset's (see `errata tune`)."""
    mirror: str | None = None
    """Folder with copies of Hub datasets."""

    @model_validator(mode="after")
    def _settles(self) -> Self:
        try:
            resolve_tuning(self.settings, self.preset)
        except ErrataError as error:
            raise ValueError(error.message) from None
        return self

    def resolved(self) -> TuneSettings:
        """Return the resolved settings."""
        return resolve_tuning(self.settings, self.preset)
