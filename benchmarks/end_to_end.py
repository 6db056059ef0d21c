"""From requests to Δ: batches of edits on a GPT-2-small shape, against the plain procedure.

Search, keys at every block and solves, as `tests/plain.py` writes them, on random weights with a
second moment of real text. Plain is timed on a sample: three searches with all their steps, the
keys and residuals of three requests at every block, and every dense solve of one batch; each is
scaled to the whole. The Δ compared is that of the sampled requests as a batch of their own. Of ten
batches the first is run whole; the last finds the keys of nine and is written with its targets.
"""

from __future__ import annotations

import statistics
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods import AlphaEdit, ClosedForm, Memit
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.models.families import FAMILIES
from errata.models.hooks import frozen
from errata.patches.base import Base, Provenance
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.statistics.measure import measure, token_rows
from errata.statistics.second_moment import SecondMoment
from measure import Timing, cpu_seconds, gpt2_small, main, plain, rewrites, texts, tokenizer

BLOCKS = (3, 4, 5, 6, 7)
TOKENS = 7000
"""Tokens of the second moment: just over twice d_in, which is the least that AlphaEdit takes."""
SAMPLE = 3
D_IN, D_OUT = 3072, 768
NOBODY = Provenance(
    base=Base(name="random", model_type="gpt2", weights="random"),
    method="none",
    settings={},
    requests=(),
)
SEARCH = Search(steps=20, clamp=0.75)


@cache
def moments() -> dict[int, SecondMoment]:
    """Return the second moments of the edited blocks, the same for every case."""
    return measure(gpt2_small(), token_rows(tokenizer(), texts(), 128, TOKENS), BLOCKS)


class Plain(NamedTuple):
    """What the plain procedure takes for a batch, and the Δ of its sample by block."""

    seconds: float
    deltas: dict[int, Tensor]


def dense(method: ClosedForm, K: Tensor, R: Tensor, block: int) -> Tensor:
    """Return Δ of one block by the published closed form; P is cut beforehand, as ours is."""
    moment = moments()[block]
    if isinstance(method, AlphaEdit):
        space = method.null_space(moment)
        P = space.project(torch.eye(space.width, dtype=torch.float64))
        return plain.alphaedit(K, R, P, torch.zeros(1), method.ridge)
    assert isinstance(method, Memit)
    return plain.memit(K, R, moment.matrix, method.moment_weight)


def earlier_batches(count: int, size: int) -> list[WeightPatch]:
    """Return patches of other requests' keys, as `count` earlier batches would have left them."""
    source, family = torch.Generator().manual_seed(0), FAMILIES["gpt2"]
    found = []
    for _ in range(count):
        updates = {}
        for block, moment in moments().items():
            root = torch.linalg.cholesky(moment.matrix.double() + 1e-6 * torch.eye(D_IN))
            K = root @ torch.randn(D_IN, size, dtype=torch.float64, generator=source)
            R, A = torch.zeros(D_OUT, size), torch.zeros(size, D_IN)
            updates[family.weight_name(block)] = Update.of(R, A, K)
        found.append(WeightPatch(updates, NOBODY))
    return found


def plainly(model: PreTrainedModel, method: ClosedForm, wanted: list[Rewrite], size: int) -> Plain:
    """Time the plain procedure on these requests, and its solves on a batch of `size`."""
    if isinstance(method, AlphaEdit):
        for block in BLOCKS:
            method.null_space(moments()[block])
    searches = [
        cpu_seconds(partial(plain.search, model, each, BLOCKS[-1], "block", SEARCH))
        for each in wanted
    ]
    found = [target for _, target in searches]
    solves: list[float] = []

    def solve(K: Tensor, R: Tensor, block: int) -> Tensor:
        taken, delta = cpu_seconds(partial(dense, method, K, R, block))
        solves.append(taken)
        return delta

    values = torch.stack([each.initial + each.delta for each in found])
    reading, deltas = cpu_seconds(lambda: plain.edit_blocks(model, wanted, values, BLOCKS, solve))
    K, R = torch.randn(D_IN, size), torch.randn(D_OUT, size)
    whole = sum(cpu_seconds(partial(dense, method, K, R, block))[0] for block in BLOCKS)
    each = statistics.median(taken for taken, _ in searches)
    return Plain(size * (each + (reading - sum(solves)) / len(wanted)) + whole, deltas)


def case(method: ClosedForm, batches: int, size: int) -> Timing:
    """Time a batch and, of many, what the last one costs besides its search."""
    model, wanted = gpt2_small(), rewrites(size)
    with frozen(model):
        theirs = plainly(model, method, wanted[:SAMPLE], size)
        few = method.find_targets(model, wanted[:SAMPLE])
        updates = method.updates(model, wanted[:SAMPLE], few, moments())
        searching, targets = cpu_seconds(partial(method.find_targets, model, wanted))
        write = partial(method.updates, model, wanted, targets, moments())
        writing = [cpu_seconds(write)[0]]
        if batches > 1:
            earlier = earlier_batches(batches - 1, size)
            write(earlier[:-1])  # what the batch before the last one would have left
            writing.append(cpu_seconds(partial(write, earlier))[0])
    seconds = batches * (searching + statistics.mean(writing))
    apart = max(
        float((update.delta() - theirs.deltas[block]).norm() / theirs.deltas[block].norm())
        for block, update in zip(BLOCKS, updates.values(), strict=True)
    )
    sampled = f"plain: {SAMPLE} requests, all their steps, and the solves of a batch"
    if batches > 1:
        sampled += "; ours: the search of the first batch, the rest of the first and the last"
    return Timing(
        plain_seconds=batches * theirs.seconds,
        seconds=seconds,
        difference=apart,
        sampled=sampled,
        more={
            "edits": batches * size,
            "seconds_per_edit": seconds / (batches * size),
            "search": searching / size,
            "write_first": writing[0] / size,
            "write_last": writing[-1] / size,
        },
    )


CASES = {
    "memit n=100": partial(case, Memit(blocks=BLOCKS, search=SEARCH), 1, 100),
    "alphaedit 10x100": partial(case, AlphaEdit(blocks=BLOCKS, search=SEARCH), 10, 100),
}

if __name__ == "__main__":
    main(CASES, __doc__)
