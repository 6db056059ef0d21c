"""Solves: a factor kept per weight and an n x n system, against dense d x d systems.

Plain is the published closed form as `tests/plain.py` writes it, in float64. The second moments
are made up, of a known spectrum, so that no eigenvectors have to be found: `once` says what taking
the moment apart cost, which a weight needs once, whatever is edited afterwards; for AlphaEdit that
is left out on both sides, as P is given to the plain form.

The sequential cases edit batch upon batch with the keys of all earlier ones: `first` and `last`
are the seconds of the first and the last tenth of the batches, `difference` is that of the last.
"""

from __future__ import annotations

import resource
import statistics
from functools import cached_property, partial

import torch
from torch import Tensor

from errata.methods import AlphaEdit, ClosedForm, Memit, Rome
from errata.statistics.null_space import NullSpace
from errata.statistics.second_moment import SecondMoment
from measure import Timing, cpu_seconds, main, plain

UNUSED = 0.6
"""Share of the directions that are AlphaEdit's null space."""
ROUNDS = 3


class Known(SecondMoment):
    """A second moment whose null space is known beforehand."""

    @cached_property
    def space(self) -> NullSpace:
        """The directions of the smallest eigenvalues, which `made_up` puts first."""
        unused = torch.arange(len(self.matrix)) < UNUSED * len(self.matrix)
        turn = _turned(torch.eye(len(self.matrix), dtype=torch.float64))
        return NullSpace.cut(turn, unused, 0.02, 0.02, 0.02)

    @cached_property
    def projector(self) -> Tensor:
        """P: (d, d)."""
        within = self.space.basis @ self.space.basis.T
        if self.space.used:
            within.neg_().diagonal().add_(1)
        return within

    def null_space(self, threshold: float, relative: bool = False) -> NullSpace:
        """Return the known one."""
        return self.space


def made_up(d: int) -> Known:
    """Return C = H D H for a reflection H and eigenvalues from 1e-3 to 10."""
    spectrum = torch.logspace(-3, 1, d, dtype=torch.float64)
    matrix = _turned(_turned(spectrum.diag()).T)
    return Known((matrix / 2 + matrix.T / 2).float(), 20 * d)


def _turned(matrix: Tensor) -> Tensor:
    """Return H M in place, H = I - 2 v vᵀ."""
    v = torch.randn(len(matrix), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v /= v.norm()
    return matrix.sub_(torch.outer(2 * v, v @ matrix))


def keys_for(moment: SecondMoment, n: int, seed: int = 0) -> Tensor:
    """Return keys (d, n), float32, that lie as the moment says."""
    d = len(moment.matrix)
    drawn = torch.randn(d, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return _turned(torch.logspace(-3, 1, d, dtype=torch.float64).sqrt()[:, None] * drawn).float()


def dense(method: ClosedForm, moment: Known, K: Tensor, earlier: list[Tensor]) -> Tensor:
    """Return A (n, d) by the published dense form."""
    unit = torch.eye(K.shape[1], dtype=torch.float64)
    if isinstance(method, Rome):
        return plain.rome(K[:, 0], K[:, 0], unit[0], moment.matrix)
    memory = torch.zeros(1, dtype=torch.float64)
    for k in earlier:
        memory = memory + k.double() @ k.double().T
    if isinstance(method, AlphaEdit):
        return plain.alphaedit(K, unit, moment.projector, memory, method.ridge)
    assert isinstance(method, Memit)
    C = moment.matrix.double() + memory / method.moment_weight
    return plain.memit(K, unit, C, method.moment_weight)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the relative difference."""
    return float((ours - theirs).norm() / theirs.norm())


def once_more(method: ClosedForm, d: int, n: int, rounds: int) -> Timing:
    """Time a batch on a weight whose moment was taken apart before."""
    moment = made_up(d)
    keys = keys_for(moment, n)
    once, _ = cpu_seconds(lambda: method.read(keys.double(), keys.double(), moment, None))
    theirs, mine, far = [], [], 0.0
    if isinstance(method, AlphaEdit):
        moment.projector  # noqa: B018
    for i in range(ROUNDS):
        taken, A = cpu_seconds(partial(method.read, keys.double(), keys.double(), moment, None))
        mine.append(taken)
        if i < rounds:
            taken, wanted = cpu_seconds(partial(dense, method, moment, keys, []))
            theirs.append(taken)
            far = max(far, apart(A, wanted))
    through = 2 * (1 - UNUSED) if isinstance(method, AlphaEdit) else 1  # by V, or by L
    return Timing(
        plain_seconds=statistics.median(theirs),
        seconds=statistics.median(mine),
        difference=far,
        flops=2 * d * d * n * through + 4 * d * n * n,
        sampled=f"plain: run {rounds} times" if rounds < ROUNDS else None,
        more={"once": once, "d": d, "n": n},
    )


def sequential(method: ClosedForm, d: int, n: int, batches: int) -> Timing:
    """Time batches upon batches, each with the keys of all before it; plain is the last, scaled."""
    moment, earlier, taken = made_up(d), list[Tensor](), []
    method.read(keys_for(moment, n).double(), keys_for(moment, n).double(), moment, None)
    held = 0
    for batch in range(batches):
        keys = keys_for(moment, n, seed=batch)
        seconds, A = cpu_seconds(partial(method.read, keys, keys, moment, list(earlier)))
        taken.append(seconds)
        earlier.append(keys)
        if batch == batches // 10:
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    plain_seconds, wanted = cpu_seconds(partial(dense, method, moment, earlier[-1], earlier[:-1]))
    tenth = max(1, batches // 10)
    return Timing(
        plain_seconds=plain_seconds * batches,
        seconds=sum(taken),
        difference=apart(A, wanted),
        sampled="plain: the last batch, the sum of earlier keys included",
        more={
            "first": statistics.median(taken[:tenth]),
            "middle": statistics.median(taken[batches // 2 : batches // 2 + tenth]),
            "last": statistics.median(taken[-tenth:]),
            "grown_bytes": 1024 * grown,
            "keys_bytes": 4 * d * n * batches,
        },
    )


CASES = {
    "rome d=6400 n=1": partial(once_more, Rome(), 6400, 1, 3),
    "memit d=6400 n=1": partial(once_more, Memit(), 6400, 1, 3),
    "memit d=3072 n=100": partial(once_more, Memit(), 3072, 100, 3),
    "alphaedit d=3072 n=100": partial(once_more, AlphaEdit(), 3072, 100, 3),
    "memit d=3072 n=3072": partial(once_more, Memit(), 3072, 3072, 3),
    "memit d=14336 n=100": partial(once_more, Memit(), 14336, 100, 1),
    "alphaedit d=14336 n=100": partial(once_more, AlphaEdit(), 14336, 100, 1),
    "alphaedit sequential d=3072 100x100": partial(sequential, AlphaEdit(), 3072, 100, 100),
    "memit history d=3072 100x100": partial(sequential, Memit(history=True), 3072, 100, 100),
}

if __name__ == "__main__":
    main(CASES, __doc__)
