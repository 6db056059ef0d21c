"""Work split over processes: which share is ours, and sums over all of them.

One process is the plain case and needs no torch.distributed; several meet through it (gloo on
the CPU, nccl on GPUs), as `torchrun` starts them.
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
    """Our place among `world` processes, counted from 0; alone by default."""

    rank: int = 0
    world: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Return the items that are ours: every `world`-th, so sorted work is spread evenly."""
        return list(items[self.rank :: self.world])

    def add(self, tensor: Tensor) -> None:
        """Add up a tensor over all processes, in place; each has the sum then."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor)

    def agree(self, value: T) -> T:
        """Return what the first process says; the others' values are ignored."""
        if self.world == 1:
            return value
        import torch.distributed

        said = [value]
        torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.agree(None)


ALONE = Ranks()
"""One process."""
