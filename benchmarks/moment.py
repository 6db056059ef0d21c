"""Second moments of five blocks: one pass per block as the references do it, against our one pass.

Plain: per block, texts in groups of 100 sorted by length, packed so that width x rows stays within
three times the model's positions, an attention mask and position ids over padding, a forward that
stops after the block as kmeng01/rome's tracing does, K Kᵀ in full and added in float32. `ratio`
is against that one; `ratio_full_forward` against running the whole model, head included, whose
additional work is timed on one batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.family import family_of
from errata.moment import SecondMoment, measure, token_rows
from errata.moment_cost import cost_of, seconds_of
from measure import Timing, cpu_seconds, gpt2_small, gpt2_xl_widths, main, medians, texts, tokenizer

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
def plain(
    model: PreTrainedModel, batches: Sequence[Rows], block: int, whole: bool = False
) -> Tensor:
    """Return C of one block: (d_in, d_in)."""
    write = family_of(model).write(model, block)
    total, count = torch.zeros(0), 0
    seen: list[Tensor] = []

    def keep(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0])
        if not whole:
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


def sample(rows: Rows, tokens: int, seed: int = 0) -> Rows:
    """Draw texts until there are so many tokens, whole groups of 100 as they stand together."""
    groups = [rows[start : start + 100] for start in range(0, len(rows) - 99, 100)]
    random.Random(seed).shuffle(groups)
    found: Rows = []
    for group in groups:
        found += group
        if sum(map(len, found)) >= tokens:
            break
    return found


def case(
    build: Callable[[], PreTrainedModel], blocks: Sequence[int], tokens: int, rounds: int, each: int
) -> Timing:
    """Time both on about `tokens` tokens; plain is timed on every `each`-th of its batches."""
    model, blocks = build(), list(blocks)
    rows = sample(token_rows(tokenizer(), texts(), 1024), tokens)
    batches = plain_batches(rows, model.config.max_position_embeddings)
    timed = batches[::each]
    share = sum(len(row) for batch in timed for row in batch) / sum(map(len, rows))
    found: dict[int, SecondMoment] = {}

    def ours() -> None:
        found.update(measure(model, rows, blocks))

    def theirs() -> None:
        for block in blocks:
            plain(model, timed, block)

    (ours_seconds, _), (plain_seconds, _) = medians(ours, theirs, rounds=rounds)
    plain_seconds /= share
    check = blocks[0]
    expected = plain(model, batches, check)
    difference = float((found[check].matrix - expected).norm() / expected.norm())
    one = [timed[len(timed) // 2]]
    part = sum(map(len, one[0])) / sum(map(len, rows))
    full, _ = cpu_seconds(lambda: plain(model, one, blocks[0], whole=True))
    cost = cost_of(model, rows, blocks, halves=False)
    estimate = seconds_of(model, rows, blocks, device=torch.device("cpu"))
    padding = sum(len(b) * len(b[0]) for b in batches) / sum(map(len, rows))
    more = {
        "ratio_full_forward": len(blocks) * full / part / ours_seconds,
        "estimated_seconds": estimate,
        "tokens": sum(map(len, rows)),
        "plain_padding": padding,
    }
    said = f"plain: {len(timed)} of {len(batches)} batches, scaled by tokens" if each > 1 else None
    return Timing(plain_seconds, ours_seconds, difference, cost.flops, said, more)


CASES = {
    "gpt2-small blocks 3-7": lambda: case(gpt2_small, range(3, 8), 20_000, 3, 2),
    "gpt2-xl widths blocks 13-17": lambda: case(
        lambda: gpt2_xl_widths(18), range(13, 18), 9_000, 1, 4
    ),
}

if __name__ == "__main__":
    main(CASES, __doc__)
