"""What measuring second moments costs, known before it is done: work, memory, disk, time.

The model is run up to the input of the last block's MLP output matrix: 2 multiplications and
additions per weight and padded token, 4 per pair of tokens and dimension in the attention; then
half of K Kᵀ per block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from errata.models.families import family_of, width_of
from errata.models.hooks import frozen
from errata.statistics.accumulate import BatchPlan, Rows, add_batch, budget_for
from errata.statistics.gram import Gram, gram_bytes, gram_flops


class MomentCost(NamedTuple):
    """What one pass takes."""

    flops: float
    """Multiplications and additions."""
    memory: int
    """Most bytes on top of the loaded model."""
    disk: int
    """Bytes that stay."""
    scratch: int
    """Bytes on disk while it runs: the sums so far, twice for a moment."""


def pass_cost(
    widths: Sequence[int],
    *,
    weights_run: int,
    hidden: int,
    shapes: Sequence[tuple[int, int]],
    layers: int,
    tokens: int,
    halves: bool,
    itemsize: int = 4,
) -> MomentCost:
    """Return what it costs to measure inputs of the given `widths`, one per block.

    `weights_run` are the entries of the matrices that a token passes, `layers` the blocks that
    are run, `shapes` (rows, longest) of each batch, `tokens` those that are not padding.
    """
    padded = sum(rows * longest for rows, longest in shapes)
    pairs = sum(rows * longest**2 for rows, longest in shapes)
    flops = 2.0 * weights_run * padded + 4.0 * layers * hidden * pairs
    flops += sum(gram_flops(width, tokens) for width in widths)
    kept = sum(gram_bytes(width) + halves * gram_bytes(width, 4) for width in widths)
    largest, widest = max(rows * longest for rows, longest in shapes), max(widths)
    running = largest * (4 * hidden + 5 * widest) * itemsize + 4 * largest * widest
    solving = (40 if halves else 8) * widest**2  # float64 factors and what they are made of
    disk = sum(4 * width**2 for width in widths)
    return MomentCost(flops, kept + max(running, solving + disk // 2), disk, 2 * kept)


def pass_cost_of(
    model: PreTrainedModel,
    rows: Rows,
    blocks: Sequence[int],
    *,
    halves: bool,
    budget: int | None = None,
) -> MomentCost:
    """Return what `measure` costs on these rows."""
    family, last = family_of(model), max(blocks)
    widths = [width_of(family.mlp_out(model, block)) for block in blocks]
    plan = BatchPlan.of(rows, budget or budget_for(model.device))
    run = [family.block(model, index) for index in range(last + 1)]
    matrices = sum(p.numel() for block in run for p in block.parameters() if p.ndim == 2)
    matrices -= family.mlp_out(model, last).get_parameter("weight").numel()
    return pass_cost(
        widths,
        weights_run=matrices,
        hidden=model.config.hidden_size,
        shapes=[(len(batch), max(len(rows[i]) for i in batch)) for batch in plan.batches],
        layers=last + 1,
        tokens=sum(map(len, rows)),
        halves=halves,
        itemsize=model.dtype.itemsize,
    )


@torch.no_grad()
def seconds_of(
    model: PreTrainedModel,
    rows: Rows,
    blocks: Sequence[int],
    *,
    device: torch.device,
    budget: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return about how many seconds `measure` takes here: one batch is run, and counted up.

    The batch in the middle of the plan is run twice, and the second time counts. `device` is
    where the sums stand, `clock` is what the seconds are told by.
    """
    family = family_of(model)
    plan = BatchPlan.of(rows, budget or budget_for(model.device))
    batch = [rows[index] for index in plan.batches[plan.first // 2]]
    writes = [family.mlp_out(model, block) for block in blocks]
    grams = [Gram(width_of(write), device) for write in writes]
    taken = 0.0
    with frozen(model):
        for _ in range(2):
            start = clock()
            add_batch(model, batch, writes, grams)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            taken = clock() - start
    return taken * sum(map(len, rows)) / sum(map(len, batch))
