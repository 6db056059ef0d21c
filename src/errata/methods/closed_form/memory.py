"""How much memory a value search takes, and how many requests at once fit into what there is.

All of it is known before the work starts: what backward needs of every block above the edited one
is so many numbers per token, what is kept of the tokens before so many per token and block, and
the logits so many per place that is looked at. The same model, machine and requests always give
the same number, so that a run can be taken up again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from errata.methods.closed_form.encoding import Rewrite
from errata.models.precision import widened_bytes
from errata.models.shape import LOGITS, MLPS, STREAMS, ModelShape

ENOUGH = {"cpu": 1024, "cuda": 32768}
"""Tokens of a step beyond which more at once is no faster."""
SHARE = 0.25
"""How much of the memory that a model leaves a search may take, where nothing else is said."""


@dataclass(frozen=True)
class Texts:
    """How much text a request is, on its own: all rows with its prefixes and the essence."""

    rows: int
    tokens: int
    """Tokens of all rows."""
    suffix: int
    """Those from the edited position on, which every step runs."""
    looked_at: int
    """Places whose logits are looked at."""

    @classmethod
    def of(cls, rewrite: Rewrite) -> Texts:
        """Count a request's texts."""
        rows = [*rewrite.rows, rewrite.essence]
        return cls(
            rows=len(rows),
            tokens=sum(len(row.ids) for row in rows),
            suffix=sum(len(row.ids) - row.position for row in rows),
            looked_at=sum(max(1, len(row.targets)) for row in rows),
        )


def search_bytes(shape: ModelShape, block: int, texts: Texts) -> int:
    """Return the most bytes that one request takes in a search at `block`, beside the model."""
    above = max(1, shape.blocks - 1 - block)
    longest = texts.tokens / texts.rows
    seen = 3 * shape.heads * longest if shape.eager else 0.0
    per_token = STREAMS * shape.width + MLPS * shape.mlp + seen
    # Attention joins past and suffix anew in every pass; the past itself stays, too.
    kept = texts.tokens * shape.kept * 2
    steps = above * (texts.suffix * per_token + kept) * shape.itemsize
    steps += LOGITS * texts.looked_at * shape.vocabulary * 4
    # Before the first step all texts run once, in full, and keep what attention keeps.
    once = texts.tokens * (4 * shape.mlp + 4 * shape.width + 2 * shape.blocks * shape.kept)
    return int(max(steps, once * shape.itemsize))


def requests_within(memory: int, most: int, suffix: float, enough: int) -> int:
    """Return how many requests of `most` bytes can be searched at once, at least one.

    No more than what brings `enough` tokens into a step, `suffix` for each request: that would
    not be faster.
    """
    return max(1, min(memory // most, round(enough / suffix)))


def group_bytes(
    model: PreTrainedModel, block: int, rewrites: Sequence[Rewrite], count: int = 1
) -> int:
    """Return the most bytes that `count` requests like these take at once, beside the model."""
    shape = ModelShape.of(model)
    return count * max(search_bytes(shape, block, Texts.of(rewrite)) for rewrite in rewrites)


def searched_at_once(
    model: PreTrainedModel, block: int, rewrites: Sequence[Rewrite], gigabytes: float | None = None
) -> int:
    """Return how many requests to search at once on this machine; see `requests_within`.

    `gigabytes` is what the search may take; a share of what the model leaves when not given.
    """
    memory = spare_bytes(model) if gigabytes is None else int(gigabytes * 2**30)
    enough = ENOUGH.get(model.device.type, ENOUGH["cpu"])
    suffix = sum(Texts.of(rewrite).suffix for rewrite in rewrites) / len(rewrites)
    return requests_within(memory, group_bytes(model, block, rewrites), suffix, enough)


def spare_bytes(model: PreTrainedModel) -> int:
    """Return how much memory a search may take: a share of what the device has beside the model.

    Weights of 16 bits stand there twice, as they are and in float32. The whole of the device's
    memory is asked, not what is free now, so that it stays the same.
    """
    held = sum(parameter.nbytes for parameter in model.parameters()) + widened_bytes(model)
    if model.device.type == "cuda":
        total = torch.cuda.get_device_properties(model.device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(SHARE * max(0, total - held))
