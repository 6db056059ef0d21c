"""How a causal trace is made: what is restored, and how the subject is corrupted.

The defaults are those of ROME's traces (arXiv 2202.05262, section 2.1 and appendix B). Nothing
here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field, field_validator

from errata.core.settings import Settings

Kind = Literal["hidden", "mlp", "attn", "frozen-mlp", "frozen-attn"]
TRACE_KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: Mapping[Kind, str] = {
    "hidden": "hidden state",
    "mlp": "MLP",
    "attn": "attention",
    "frozen-mlp": "hidden state, MLPs severed",
    "frozen-attn": "hidden state, attention severed",
}
"""What is restored, in words."""

PAPER_WINDOW, PAPER_BLOCKS = 10, 48
"""The window of the paper, and the number of blocks of the model that it was taken on."""


class TraceSettings(Settings):
    """What is restored in a corrupted run, and how the run is corrupted."""

    kinds: tuple[Kind, ...] = ("hidden", "mlp", "attn")
    """What is restored: hidden, mlp, attn; with the MLPs or the attention of all later blocks
    held at their corrupted values at that token: frozen-mlp, frozen-attn."""
    window: int | None = Field(None, ge=1)
    """Blocks around each one whose MLP or attention is restored together; when not given 10 of
    48 blocks, as in the paper, and the same share of fewer, at most 10."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """What the subject's embeddings are corrupted with; uniform noise lies between -1 and 1."""
    level: str = "3s"
    """What the noise is multiplied by: a number, or a multiple of the standard deviation of the
    subjects' embeddings, as in 3s."""
    replace: bool = False
    """Put the noise in place of the embeddings instead of adding it."""
    samples: int = Field(10, ge=1)
    """Corrupted runs, each with a noise of its own, the same for every cell."""
    noise_seed: int = Field(1, ge=0)
    """Seed of the noise; 1 gives the noise of the published code."""
    subject_last_only: bool = False
    """Restore at the subject's last token only."""

    @field_validator("kinds")
    @classmethod
    def _each_once(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("name at least one kind, and none twice")
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
            raise ValueError("is a number, or a multiple of the standard deviation such as 3s")
        return text

    @property
    def deviations(self) -> float | None:
        """The multiple of the embeddings' standard deviation; None for a fixed level."""
        return float(self.level[:-1]) if self.level.endswith("s") else None

    def window_for(self, blocks: int) -> int:
        """Return how many blocks are restored together in a model of so many."""
        if self.window is not None:
            return min(self.window, blocks)
        return min(PAPER_WINDOW, math.ceil(blocks * PAPER_WINDOW / PAPER_BLOCKS))


def window_around(block: int, width: int, count: int) -> range:
    """Return the blocks of a window around one, cut at both ends of the model.

    An even window has one more block below than above: 10 around l are l - 5 to l + 4.
    """
    return range(max(0, block - width // 2), min(count, block + (width + 1) // 2))
