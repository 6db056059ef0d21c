"""From requests to Δ: batches of edits on a GPT-2-small shape, against the plain procedure.

Search, keys at every block and solves, as `tests/plain.py` writes them, with a second moment of
real text. On SmolLM2 plain is timed on all requests, on random weights on a sample: three searches
with all their steps, the keys and residuals of three requests at every block, and every dense solve
of one batch; each is scaled to the whole. The Δ compared is that of the sampled requests as a batch
of their own. Of ten batches the first is run whole; the last finds the keys of nine and is written
with its targets.
"""

from __future__ import annotations

import statistics
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from errata.methods import AlphaEdit, ClosedForm, Memit, Rome
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.models.families import family_of
from errata.models.hooks import frozen
from errata.patches.base import Base, Provenance
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.statistics.measure import measure, token_rows
from errata.statistics.second_moment import SecondMoment
from measure import Cases, Timing, cpu_seconds, main, medians, plain
from prompts import rewrites, texts
from subjects import GPT2_SMALL, SMOLLM2, Subject

TOKENS = 7000
"""Tokens of the second moment: over twice d_in, which is the least that AlphaEdit takes."""
SAMPLE = 3
NOBODY = Provenance(
    base=Base(name="random", model_type="gpt2", weights="random"),
    method="none",
    settings={},
    requests=(),
)
SEARCH = Search(steps=20, clamp=0.75)


@cache
def moments(subject: Subject) -> dict[int, SecondMoment]:
    """Return the second moments of the edited blocks, the same for every case."""
    model, reads = subject.load()
    return measure(model, token_rows(reads, texts(), 128, TOKENS), subject.blocks)


class Plain(NamedTuple):
    """What the plain procedure takes for a batch, and the Δ of its sample by block."""

    seconds: float
    deltas: dict[int, Tensor]


def dense(method: ClosedForm, K: Tensor, R: Tensor, moment: SecondMoment) -> Tensor:
    """Return Δ of one block by the published closed form; P is cut beforehand, as ours is."""
    if isinstance(method, AlphaEdit):
        assert method.ridge is not None
        space = method.null_space(moment)
        P = space.project(torch.eye(space.width, dtype=torch.float64))
        return plain.alphaedit(K, R, P, torch.zeros(1), method.ridge)
    assert isinstance(method, Memit) and method.moment_weight is not None
    return plain.memit(K, R, moment.matrix, method.moment_weight)


def earlier_batches(subject: Subject, count: int, size: int) -> list[WeightPatch]:
    """Return patches of other requests' keys, as `count` earlier batches would have left them."""
    source, model = torch.Generator().manual_seed(0), subject.load()[0]
    family, d_out, found = family_of(model), model.config.hidden_size, []
    for _ in range(count):
        updates = {}
        for block, moment in moments(subject).items():
            d_in = len(moment.matrix)
            root = torch.linalg.cholesky(moment.matrix.double() + 1e-6 * torch.eye(d_in))
            K = root @ torch.randn(d_in, size, dtype=torch.float64, generator=source)
            R, A = torch.zeros(d_out, size), torch.zeros(size, d_in)
            updates[family.weight_name(block)] = Update.of(R, A, K)
        found.append(WeightPatch(updates, NOBODY))
    return found


@cache
def plain_searches(subject: Subject, count: int) -> tuple[list[float], Tensor]:
    """Return the seconds of the plain search of each request, and all target values."""
    model, reads = subject.load()
    with frozen(model):
        searches = [
            cpu_seconds(partial(plain.search, model, each, subject.blocks[-1], "block", SEARCH))
            for each in rewrites(count, reads)
        ]
    values = torch.stack([target.initial + target.delta for _, target in searches])
    return [taken for taken, _ in searches], values


def plainly(subject: Subject, method: ClosedForm, sample: int, size: int) -> Plain:
    """Time the plain procedure on the first requests, and its solves on a batch of `size`."""
    model, reads = subject.load()
    if isinstance(method, AlphaEdit):
        for moment in moments(subject).values():
            method.null_space(moment)
    searches, values = plain_searches(subject, sample)
    solves: list[float] = []

    def solve(K: Tensor, R: Tensor, block: int) -> Tensor:
        taken, delta = cpu_seconds(partial(dense, method, K, R, moments(subject)[block]))
        solves.append(taken)
        return delta

    wanted = rewrites(sample, reads)
    reading, deltas = cpu_seconds(
        lambda: plain.edit_blocks(model, wanted, values, subject.blocks, solve)
    )
    whole = 0.0
    for moment in moments(subject).values():
        K, R = torch.randn(len(moment.matrix), size), torch.randn(values.shape[1], size)
        whole += cpu_seconds(partial(dense, method, K, R, moment))[0]
    each = statistics.mean(searches) + (reading - sum(solves)) / sample
    return Plain(size * each + whole, deltas)


def case(
    subject: Subject, method: ClosedForm, batches: int, size: int, sample: int = SAMPLE
) -> Timing:
    """Time a batch and, of many, what the last one costs besides its search."""
    (model, reads), C = subject.load(), moments(subject)
    method, wanted = method.with_values(blocks=subject.blocks), rewrites(size, reads)
    with frozen(model):
        theirs = plainly(subject, method, sample, size)
        searching, targets = cpu_seconds(partial(method.find_targets, model, wanted))
        few = targets if sample == size else method.find_targets(model, wanted[:sample])
        updates = method.updates(model, wanted[:sample], few, C)
        write = partial(method.updates, model, wanted, targets, C)
        writing = [cpu_seconds(write)[0]]
        if batches > 1:
            earlier = earlier_batches(subject, batches - 1, size)
            write(earlier[:-1])  # what the batch before the last one would have left
            writing.append(cpu_seconds(partial(write, earlier))[0])
    seconds = batches * (searching + statistics.mean(writing))
    sampled = f"plain: {sample} requests, all their steps, and the solves of a batch"
    if batches > 1:
        sampled += "; ours: the search of the first batch, the rest of the first and the last"
    return Timing(
        plain_seconds=batches * theirs.seconds,
        seconds=seconds,
        difference=max(
            _apart(update.delta(), theirs.deltas[block])
            for block, update in zip(subject.blocks, updates.values(), strict=True)
        ),
        sampled=sampled if sample < size or batches > 1 else None,
        more={
            "edits": batches * size,
            "seconds_per_edit": seconds / (batches * size),
            "search": searching / size,
            "write_first": writing[0] / size,
            "write_last": writing[-1] / size,
        },
    )


def alone(subject: Subject, count: int) -> Timing:
    """Time ROME on requests of which each is edited alone; plain inverts C every time."""
    (model, reads), block = subject.load(), subject.blocks[-1]
    C, method = moments(subject), Rome(blocks=(block,))

    def ours(one: list[Rewrite]) -> Tensor:
        (update,) = method.updates(model, one, method.find_targets(model, one), C).values()
        return update.delta()

    def theirs(one: list[Rewrite]) -> Tensor:
        found = plain.search(model, one[0], block, "mlp", method.search)
        values = (found.initial + found.delta)[None]
        return plain.edit_ranks(model, one, values, block, C[block].matrix)

    seconds, plain_seconds, apart = 0.0, 0.0, 0.0
    with frozen(model):
        for each in rewrites(count, reads):
            (plain_taken, wanted), (taken, delta) = medians(
                partial(theirs, [each]), partial(ours, [each]), rounds=1
            )
            seconds, plain_seconds = seconds + taken, plain_seconds + plain_taken
            apart = max(apart, _apart(delta, wanted))
    more = {"edits": count, "seconds_per_edit": seconds / count}
    return Timing(plain_seconds, seconds, apart, more=more)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


CASES = {
    "memit n=100": partial(case, GPT2_SMALL, Memit(search=SEARCH), 1, 100),
    "alphaedit 10x100": partial(case, GPT2_SMALL, AlphaEdit(search=SEARCH), 10, 100),
}


def smollm2(count: int) -> Cases:
    """Return ROME on facts edited alone, and the batch methods on a batch of all of them."""
    return {
        f"smollm2 rome, {count} alone": partial(alone, SMOLLM2, count),
        f"smollm2 memit n={count}": partial(case, SMOLLM2, Memit(search=SEARCH), 1, count, count),
        f"smollm2 alphaedit n={count}": partial(
            case, SMOLLM2, AlphaEdit(search=SEARCH), 1, count, count
        ),
    }


if __name__ == "__main__":
    main(CASES, __doc__, smollm2, (5,))
