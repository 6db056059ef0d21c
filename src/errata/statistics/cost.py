"""The cost of measuring second moments, estimated beforehand: FLOPs, memory, disk, time.

The model runs up to the input of the last block's MLP output matrix: 2 FLOPs per weight and padded
token, 4 per pair of tokens and dimension in the attention; then half of K Kᵀ per block.
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
    """The cost of one pass."""

    flops: float
    """Multiplications and additions."""
    memory: int
    """Peak bytes in addition to the loaded model."""
    disk: int
    """Bytes of the stored moments."""
    scratch: int
    """Temporary bytes on disk: the checkpoint, twice while it is replaced."""


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
    """Return the cost of measuring inputs of the given `widths`, one per block.

    `weights_run` is the number of matrix entries that a token passes, `layers` the number of blocks
    that run, `shapes` are (rows, longest) of each batch; `tokens` excludes padding.
    """
    padded = sum(rows * longest for rows, longest in shapes)
    pairs = sum(rows * longest**2 for rows, longest in shapes)
    flops = 2.0 * weights_run * padded + 4.0 * layers * hidden * pairs
    flops += sum(gram_flops(width, tokens) for width in widths)
    sums = sum(gram_bytes(width) + halves * gram_bytes(width, 4) for width in widths)
    largest, widest = max(rows * longest for rows, longest in shapes), max(widths)
    running = largest * (4 * hidden + 5 * widest) * itemsize + 4 * largest * widest
    solving = (40 if halves else 8) * widest**2  # float64 matrices and their factors
    disk = sum(4 * width**2 for width in widths)
    return MomentCost(flops, sums + max(running, solving + disk // 2), disk, 2 * sums)


def pass_cost_of(
    model: PreTrainedModel,
    rows: Rows,
    blocks: Sequence[int],
    *,
    halves: bool,
    budget: int | None = None,
) -> MomentCost:
    """Return the cost of `measure` on these rows."""
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
    """Estimate the seconds that `measure` takes, extrapolated from one batch by tokens.

    The batch in the middle of the even rows' batches runs twice; the second run is timed by
    `clock`. `device` is the device of the sums.
    """
    family = family_of(model)
    plan = BatchPlan.of(rows, budget or budget_for(model.device))
    batch = [rows[index] for index in plan.batches[plan.first // 2]]
    modules = [family.mlp_out(model, block) for block in blocks]
    grams = [Gram(width_of(module), device) for module in modules]
    taken = 0.0
    with frozen(model):
        for _ in range(2):
            start = clock()
            add_batch(model, batch, modules, grams)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            taken = clock() - start
    return taken * sum(map(len, rows)) / sum(map(len, batch))
