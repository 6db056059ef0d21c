"""Rows on their way up through a model: read at block after block, what lies below runs once.

An edit reads keys at one block, writes its matrix, and reads at the next: up to the block that was
written, nothing has changed since. A `LayerwiseReader` keeps the states below the last block it
read and continues from there. Rows are cut at their position (a causal model cannot see further),
run in batches by length and stopped at what is read; common beginnings are run once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, record, replaced
from errata.models.prefix_cache import PrefixCache, SharedPrefixCache, SharedPrefixes
from errata.models.suffix_run import entering
from errata.models.tokens import TOKENS_AT_ONCE, TokenRow, batches_by_length, pad_right

PASSES = 4
"""Forward passes whose rows are looked at together for what they begin alike with."""
HELD_BYTES = 2**29
"""States that are kept on the way up; rows beyond that begin at the bottom each time."""


class BlockStart(NamedTuple):
    """Where some rows stand: what a block put out for all their tokens."""

    block: int
    states: Tensor  # (rows, tokens, d)
    tuple_size: int  # how many things the block returns; 0 for a bare tensor

    @classmethod
    def of(cls, block: int, output: Any) -> BlockStart:
        """Take what a block returned."""
        size = len(output) if isinstance(output, tuple) else 0
        return cls(block, first_tensor(output), size)


class _Part:
    """Rows that look together for what they begin alike with."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[TokenRow], budget: int) -> None:
        ids, limits = [row.ids for row in rows], [row.position for row in rows]
        self.model, self.begun = model, SharedPrefixes.of(ids, limits, model.device)
        done = self.begun.lengths.tolist()
        self.left = [row.ids[n:] for row, n in zip(rows, done, strict=True)]
        self.batches = batches_by_length([len(ids) for ids in self.left], budget)
        self.grounds: dict[int, BlockStart] = {}
        """Where each batch stands, by its number; -1 for the beginnings."""

    def read(
        self, sites: Sequence[Site], stay: int | None
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield batches with what is at each site at their ends; stand at block `stay` if any."""
        past = SharedPrefixCache(self.begun)
        if self.begun.ids:
            cache = DynamicCache()
            ids = pad_right(self.begun.ids, self.model.device)
            self._run(-1, ids, sites, stay, {"past_key_values": cache, "use_cache": True})
            past = self.begun.past(cache)
        for number, batch in enumerate(self.batches):
            before = past.select(torch.tensor(batch, device=self.model.device))
            yield batch, self._ends(number, batch, before, sites, stay)

    def _ends(
        self,
        number: int,
        batch: list[int],
        before: PrefixCache,
        sites: Sequence[Site],
        stay: int | None,
    ) -> list[Tensor]:
        ids = pad_right([self.left[i] for i in batch], self.model.device)
        ends = torch.tensor([len(self.left[i]) for i in batch], device=ids.device)
        around = before.around(ends, ids.shape[1]) if before.width else {}
        line = torch.arange(len(batch), device=ids.device)
        return [
            first_tensor(value)[line, ends - 1]
            for value in self._run(number, ids, sites, stay, around)
        ]

    def _run(
        self,
        number: int,
        ids: Tensor,
        sites: Sequence[Site],
        stay: int | None,
        around: dict[str, Any],
    ) -> list[Any]:
        """Run from where these rows stand; return what is at the sites."""
        ground = self.grounds.get(number)
        below = {} if ground is None else entering(self.model, *ground)
        if stay is None:
            with replaced(below):
                return record(self.model, ids, sites, **around)
        output = Site(family_of(self.model).block(self.model, stay), "output")
        with replaced(below):
            *found, standing = record(self.model, ids, [*sites, output], **around)
        self.grounds[number] = BlockStart.of(stay, standing)
        return found

    def held(self) -> int:
        """Return the bytes of the states that are kept."""
        return sum(ground.states.nbytes for ground in self.grounds.values())

    def tokens(self) -> int:
        """Return how many tokens run through a block, padding included."""
        runs = [self.begun.ids, *([self.left[i] for i in batch] for batch in self.batches)]
        return sum(len(rows) * max(map(len, rows), default=0) for rows in runs)


class LayerwiseReader:
    """Rows that are read at one block after another, upwards.

    Between two reads weights may change in the block that was read at and above, not below.
    """

    def __init__(
        self, model: PreTrainedModel, rows: Sequence[TokenRow], budget: int = TOKENS_AT_ONCE
    ) -> None:
        self.model, self.count = model, len(rows)
        cut = [row.key for row in rows]
        self.parts = [
            (some, _Part(model, [cut[i] for i in some], budget))
            for some in _alike(cut, PASSES * budget)
        ]

    @torch.no_grad()
    def read(self, sites: Sequence[Site], block: int = 0, room: int = HELD_BYTES) -> list[Tensor]:
        """Return, per site, what is there at each row's position: (rows, width), model's dtype.

        The next read begins at `block`, which is at or below all sites, as far as the states of
        all tokens there fit into `room` bytes.
        """
        found: list[Tensor] = []
        for some, part in self.parts:
            stay = block - 1 if block and room > 0 else None
            for batch, vectors in part.read(sites, stay):
                if not found:
                    found = [vector.new_empty(self.count, vector.shape[1]) for vector in vectors]
                places = torch.tensor([some[i] for i in batch], device=self.model.device)
                for whole, vector in zip(found, vectors, strict=True):
                    whole[places] = vector
            room -= part.held()
        return found

    def held(self) -> int:
        """Return the bytes of the states that are kept."""
        return sum(part.held() for _, part in self.parts)

    def tokens(self) -> int:
        """Return how many tokens run through a block, padding included."""
        return sum(part.tokens() for _, part in self.parts)


def _alike(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[int]]:
    """Split rows into parts of about so many tokens, those together that begin alike."""
    part: list[int] = []
    size = 0
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].ids, i)):
        if part and size + len(rows[i].ids) > tokens:
            yield part
            part, size = [], 0
        part.append(i)
        size += len(rows[i].ids)
    if part:
        yield part


def read_at(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    budget: int = TOKENS_AT_ONCE,
) -> list[Tensor]:
    """Return, per site, what stands there at each row's position: (rows, width), model's dtype."""
    return LayerwiseReader(model, rows, budget).read(sites)
