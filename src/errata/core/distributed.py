"""Work split over processes: the share of each, and sums over all of them.

A single process needs no torch.distributed; several, started by `torchrun`, communicate through it
(gloo on the CPU, nccl on GPUs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `world` processes, counted from 0; a single one by default."""

    rank: int = 0
    world: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's items: every `world`-th, so that sorted work is spread evenly."""
        return list(items[self.rank :: self.world])

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, in place, on each of them."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor)

    def agree(self, value: T) -> T:
        """Return the first process's value on every process; the others' values are ignored."""
        if self.world == 1:
            return value
        import torch.distributed

        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self.agree(None)


ALONE = Ranks()
"""A single process."""
