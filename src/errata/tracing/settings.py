"""Settings of a causal trace: which states are restored, and how the subject is corrupted.

The defaults are those of the ROME paper (arXiv 2202.05262, section 2.1 and appendix B). Nothing
here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field, field_validator

from errata.core.settings import LARGEST_NUMPY_SEED, Settings

Kind = Literal["hidden", "mlp", "attn", "frozen-mlp", "frozen-attn"]
TRACE_KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: Mapping[Kind, str] = {
    "hidden": "hidden state",
    "mlp": "MLP",
    "attn": "attention",
    "frozen-mlp": "hidden state, MLPs severed",
    "frozen-attn": "hidden state, attention severed",
}
"""Display names of the kinds."""

PAPER_WINDOW, PAPER_BLOCKS = 10, 48
"""The paper's window, and the number of blocks of the model it was used on."""


class TraceSettings(Settings):
    """Which states are restored in a corrupted run, and how it is corrupted."""

    kinds: tuple[Kind, ...] = ("hidden", "mlp", "attn")
    """States to restore: hidden, mlp, attn; frozen-mlp and frozen-attn restore the hidden state
    with the MLPs or attention of later blocks fixed to their corrupted outputs at that token."""
    window: int | None = Field(None, ge=1)
    """Number of neighbouring blocks whose MLP or attention is restored together; default: 10 of 48
    blocks, as in the paper, and the same fraction of other depths, at most 10."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """Distribution of the noise on the subject's embeddings; uniform noise is between -1 and 1."""
    level: str = "3s"
    """Noise level: a number, or a multiple of the standard deviation of the subjects' embeddings,
    as in 3s."""
    replace: bool = False
    """Replace the embeddings with noise instead of adding it."""
    samples: int = Field(10, ge=1)
    """Number of corrupted runs, each with its own noise, shared by all cells."""
    noise_seed: int = Field(1, ge=0, le=LARGEST_NUMPY_SEED)
    """Seed of the noise; 1 reproduces the noise of the published code."""
    subject_last_only: bool = False
    """Restore at the subject's last token only."""

    @field_validator("kinds")
    @classmethod
    def _each_once(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("name at least one kind, and none more than once")
        return kinds

    @field_validator("level", mode="before")
    @classmethod
    def _level(cls, level: object) -> str:
        text = str(level).strip()
        try:
            number = float(text.removesuffix("s"))
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise ValueError("must be a number, or a multiple of the standard deviation such as 3s")
        return text

    @property
    def deviations(self) -> float | None:
        """The multiple of the embeddings' standard deviation; None for a fixed level."""
        return float(self.level[:-1]) if self.level.endswith("s") else None

    def window_for(self, blocks: int) -> int:
        """Return the window for a model with this number of blocks."""
        if self.window is not None:
            return min(self.window, blocks)
        return min(PAPER_WINDOW, math.ceil(blocks * PAPER_WINDOW / PAPER_BLOCKS))


def window_around(block: int, width: int, count: int) -> range:
    """Return the blocks of a window around a block, truncated at both ends of the model.

    An even window has one more block below than above: a window of 10 around l is l - 5 to l + 4.
    """
    return range(max(0, block - width // 2), min(count, block + (width + 1) // 2))
