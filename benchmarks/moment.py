"""Second moments of five blocks: one pass per block as the references do it, against our one pass.

Plain: per block, texts in groups of 100 sorted by length, packed so that width x rows stays within
three times the model's positions, an attention mask and position ids over padding, a forward that
stops after the block (as kmeng01/rome's tracing does; a full one would take still longer), K Kᵀ in
full and added in float32. It is timed on some of its batches, all blocks, and scaled by tokens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.models.families import family_of
from errata.statistics.cost import pass_cost_of, seconds_of
from errata.statistics.measure import measure, token_rows
from measure import Timing, main, medians
from prompts import texts, tokenizer
from subjects import gpt2_small, gpt2_xl_widths

Rows = list[tuple[int, ...]]


class Stop(Exception):
    """Ends a forward pass."""


def plain_batches(rows: Rows, positions: int) -> list[Rows]:
    """Pack rows as the references do: groups of 100, the longest first."""
    batches: list[Rows] = []
    for start in range(0, len(rows), 100):
        batch: Rows = []
        for row in sorted(rows[start : start + 100], key=len, reverse=True):
            if batch and len(batch[0]) * (len(batch) + 1) > 3 * positions:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    return batches


def padded(batch: Rows) -> dict[str, Tensor]:
    """Pad a batch on the right, with its mask and positions."""
    width = max(map(len, batch))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
    places = torch.arange(width).expand(len(batch), -1)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places}


@torch.no_grad()
def plain(model: PreTrainedModel, batches: Sequence[Rows], block: int) -> Tensor:
    """Return C of one block: (d_in, d_in)."""
    write = family_of(model).mlp_out(model, block)
    total, count = torch.zeros(0), 0
    seen: list[Tensor] = []

    def keep(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0])
        raise Stop

    handle = write.register_forward_hook(keep)
    try:
        for batch in batches:
            inputs = padded(batch)
            with suppress(Stop):
                model(**inputs, use_cache=False)
            keys = seen.pop()[inputs["attention_mask"].bool()]
            gram = keys.T @ keys
            total = total + gram if count else gram
            count += len(keys)
    finally:
        handle.remove()
    return total / count


def sample(rows: Rows, groups: int, seed: int = 0) -> Rows:
    """Draw hundreds of texts, as they stand together."""
    starts = random.Random(seed).sample(range(0, len(rows) - 99, 100), groups)
    return [row for start in starts for row in rows[start : start + 100]]


def case(
    build: Callable[[], PreTrainedModel], blocks: Sequence[int], groups: int, rounds: int, each: int
) -> Timing:
    """Time both on `groups` hundreds of texts; plain is timed on every `each`-th of its batches.

    With `each` 0 plain is timed on one batch that is padded as they are on average, for the first
    and the last block, and scaled by the number of blocks too.
    """
    model, blocks = build(), list(blocks)
    rows = sample(token_rows(tokenizer(), texts(), 1024), groups)
    batches = plain_batches(rows, model.config.max_position_embeddings)
    padding, count = padding_of(batches), sum(map(len, rows))
    timed, asked = batches[each // 2 :: max(each, 1)], blocks
    said = f"plain: {len(timed)} of {len(batches)} batches, scaled by their tokens"
    if not each:
        timed = [min(batches, key=lambda batch: abs(padding_of([batch]) - padding))]
        asked = [blocks[0], blocks[-1]]
        said = f"plain: one of {len(batches)} batches, first and last block, scaled to all"
    share = sum(len(row) for batch in timed for row in batch) / count * len(asked) / len(blocks)

    def theirs() -> None:
        for block in asked:
            plain(model, timed, block)

    cpu = torch.device("cpu")
    estimate = seconds_of(model, rows, blocks, device=cpu, clock=time.process_time)
    (seconds, _), (plain_seconds, _) = medians(
        lambda: measure(model, rows, blocks), theirs, rounds=rounds
    )
    more = {
        "tokens": count,
        "plain_padding": padding_of(timed),
        "estimate_over_seconds": estimate / seconds,
    }
    flops = pass_cost_of(model, rows, blocks, halves=False).flops
    difference = largest_difference(model, rows[:4], [blocks[0], blocks[-1]])
    return Timing(plain_seconds / share, seconds, difference, flops, said, more)


def padding_of(batches: Sequence[Rows]) -> float:
    """Return how many padded tokens are run for each token."""
    padded = sum(len(batch) * len(batch[0]) for batch in batches)
    return padded / sum(len(row) for batch in batches for row in batch)


def largest_difference(model: PreTrainedModel, rows: Rows, blocks: Sequence[int]) -> float:
    """Return the largest ‖C - plain C‖ / ‖plain C‖ on a few texts."""
    found = measure(model, rows, blocks)
    batches = plain_batches(rows, model.config.max_position_embeddings)
    expected = {block: plain(model, batches, block) for block in blocks}
    return max(float((found[b].matrix - C).norm() / C.norm()) for b, C in expected.items())


CASES = {
    "gpt2-small blocks 3-7": lambda: case(gpt2_small, range(3, 8), 2, 3, 3),
    "gpt2-xl widths blocks 13-17": lambda: case(lambda: gpt2_xl_widths(18), range(13, 18), 1, 1, 0),
}

if __name__ == "__main__":
    main(CASES, __doc__)
