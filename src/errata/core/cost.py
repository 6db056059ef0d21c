"""The cost of a piece of work: FLOPs, seconds, peak memory, bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Cost(NamedTuple):
    """The estimated cost of one piece of work."""

    what: str
    flops: float
    seconds: float
    memory: int
    """Peak bytes in addition to the model's weights."""
    disk: int
    """Bytes written."""


def total(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs; memory is the maximum, since the work is done in sequence."""
    return Cost(
        "in all",
        sum(cost.flops for cost in costs),
        sum(cost.seconds for cost in costs),
        max((cost.memory for cost in costs), default=0),
        sum(cost.disk for cost in costs),
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` evenly spaced items."""
    step = max(1, len(items) // count)
    return list(items[::step][:count])


def least_seconds(work: Callable[[], Any], rounds: int = 2) -> float:
    """Return the shortest of a few timings of `work`, least affected by other processes."""
    import torch

    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)
