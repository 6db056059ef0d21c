"""The memory of a target search, and how many requests fit at once.

It is known before the search: backward holds a fixed number of values per token for every block
above the edited one, the key-value cache of earlier tokens a fixed number per token and block,
and the logits one vocabulary per predicted position. The same model, machine and requests always
give the same number, so that a run can be resumed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from errata.methods.closed_form.rewrite import Rewrite
from errata.models.precision import widened_bytes
from errata.models.shape import LOGITS, MLPS, STREAMS, ModelShape

ENOUGH = {"cpu": 1024, "cuda": 32768}
"""Tokens per step above which larger batches are no faster."""
SHARE = 0.25
"""Default share of the memory beside the model that a search may use."""


@dataclass(frozen=True)
class Texts:
    """The size of a request's text: its rows with all prefixes, and the essence prompt."""

    rows: int
    tokens: int
    """Tokens of all rows."""
    suffix: int
    """Tokens from the edited position on, which every step runs."""
    predicted: int
    """Positions whose logits are computed."""

    @classmethod
    def of(cls, rewrite: Rewrite) -> Texts:
        """Count a request's texts."""
        rows = [*rewrite.rows, rewrite.essence]
        return cls(
            rows=len(rows),
            tokens=sum(len(row.ids) for row in rows),
            suffix=sum(len(row.ids) - row.position for row in rows),
            predicted=sum(max(1, len(row.targets)) for row in rows),
        )


def search_bytes(shape: ModelShape, block: int, texts: Texts) -> int:
    """Return the peak bytes of one request in a search at `block`, without the model."""
    above = max(1, shape.blocks - 1 - block)
    longest = texts.tokens / texts.rows
    seen = 3 * shape.heads * longest if shape.eager else 0.0
    per_token = STREAMS * shape.width + MLPS * shape.mlp + seen
    # Attention concatenates past and suffix in every pass; the past itself is held, too.
    kept = texts.tokens * shape.cached * 2
    steps = above * (texts.suffix * per_token + kept) * shape.itemsize
    steps += LOGITS * texts.predicted * shape.vocabulary * 4
    # Before the first step all texts run once, in full, to fill the key-value cache.
    once = texts.tokens * (4 * shape.mlp + 4 * shape.width + 2 * shape.blocks * shape.cached)
    return int(max(steps, once * shape.itemsize))


def requests_within(memory: int, most: int, suffix: float, enough: int) -> int:
    """Return how many requests of `most` bytes can be searched at once, at least one.

    The number is limited to `enough` tokens per step, with `suffix` tokens per request: more
    would not be faster.
    """
    return max(1, min(memory // most, round(enough / suffix)))


def group_bytes(
    model: PreTrainedModel, block: int, rewrites: Sequence[Rewrite], count: int = 1
) -> int:
    """Return the peak bytes of `count` such requests at once, without the model."""
    shape = ModelShape.of(model)
    return count * max(search_bytes(shape, block, Texts.of(rewrite)) for rewrite in rewrites)


def searched_at_once(
    model: PreTrainedModel, block: int, rewrites: Sequence[Rewrite], gigabytes: float | None = None
) -> int:
    """Return how many requests to search at once on this machine; see `requests_within`.

    `gigabytes` limits the memory of the search (default: a share of what the model leaves).
    """
    memory = spare_bytes(model) if gigabytes is None else int(gigabytes * 2**30)
    enough = ENOUGH.get(model.device.type, ENOUGH["cpu"])
    suffix = sum(Texts.of(rewrite).suffix for rewrite in rewrites) / len(rewrites)
    return requests_within(memory, group_bytes(model, block, rewrites), suffix, enough)


def spare_bytes(model: PreTrainedModel) -> int:
    """Return the memory in bytes that a search may use: a share of what the model leaves.

    Weights of 16 bits count twice, as stored and in float32. The total memory of the device is
    used, not what is free now, so that the result is always the same.
    """
    held = sum(parameter.nbytes for parameter in model.parameters()) + widened_bytes(model)
    if model.device.type == "cuda":
        total = torch.cuda.get_device_properties(model.device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(SHARE * max(0, total - held))
