"""Settings that the closed-form methods share: the target search and its contexts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from errata.core.settings import LARGEST_SEED, Settings


class Search(Settings):
    """How target values are searched (see `values`)."""

    model_config = ConfigDict(allow_inf_nan=False)

    steps: int = Field(25, ge=1)
    """Evaluations of the loss; there is one Adam step fewer."""
    learning_rate: float = Field(0.5, gt=0)
    """Adam's learning rate."""
    weight_decay: float = Field(0.5, ge=0)
    """Weight of the change's length over the squared length of what stood there."""
    clamp: float = Field(4.0, gt=0)
    """The change is kept within this many lengths of what stood there."""
    kl_weight: float = Field(0.0625, ge=0)
    """Weight of the KL divergence that keeps the subject's essence."""
    stop_at: float = Field(0.05, ge=0)
    """A request is done when its loss falls below this."""
    loss_block: int | None = Field(None, ge=0)
    """Read the answer after this block instead of the last one."""
    essence_prompt: str = "{} is a"
    """The text whose next-token distribution should stay; {} is the subject."""
    precision: Literal["full", "tf32", "autocast"] = "full"
    """Float32, also where weights are narrower; products in TF32 (CUDA) or bfloat16 are faster."""

    @field_validator("essence_prompt")
    @classmethod
    def _one_slot(cls, prompt: str) -> str:
        if prompt.count("{}") != 1:
            raise ValueError("needs exactly one {} for the subject")
        return prompt


class Contexts(Settings):
    """Texts put before a prompt, so that an edit holds in any company (see `prefixes`)."""

    prefixes: tuple[str, ...] | None = None
    """A fixed list of prefixes; when not given they are sampled from the model."""
    prefix_lengths: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (10, 10, 10, 10, 10)
    """Sample one prefix per number, that many tokens long."""
    prefix_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of their sampling."""
