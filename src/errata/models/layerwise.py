"""Hidden states of rows, read layer by layer without recomputing lower layers.

An edit reads keys at one block, changes its MLP output matrix, and reads at the next; nothing below
that block has changed in between. A `LayerwiseReader` stores the hidden states below the last block
it read and resumes from there. Rows are truncated after their position (a causal model sees no
further), run in batches by length and only up to the sites; shared prefixes run once.
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
from errata.models.suffix_run import resuming
from errata.models.tokens import TOKENS_AT_ONCE, TokenRow, batches_by_length, pad_right

PASSES = 4
"""Shared prefixes are searched among the rows of this many forward passes together."""
STATE_BYTES = 2**29
"""Most bytes of stored hidden states; rows beyond that start at the embedding in every read."""
PREFIXES = -1
"""The number under which the state of the shared prefixes is stored, beside those of batches."""


class BlockState(NamedTuple):
    """The output of a block for all tokens of some rows, from which a forward pass resumes."""

    block: int
    states: Tensor  # (rows, tokens, d)
    tuple_size: int  # elements of the tuple that the block returns; 0 for a bare tensor

    @classmethod
    def of(cls, block: int, output: Any) -> BlockState:
        """Take what a block returned."""
        size = len(output) if isinstance(output, tuple) else 0
        return cls(block, first_tensor(output), size)


class _Chunk:
    """Rows among which shared prefixes are searched; `rows` end at their positions."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[TokenRow], budget: int) -> None:
        ids, limits = [row.ids for row in rows], [row.position for row in rows]
        self.model, self.prefixes = model, SharedPrefixes.of(model, ids, limits)
        lengths = self.prefixes.lengths.tolist()
        self.suffixes = [row.ids[n:] for row, n in zip(rows, lengths, strict=True)]
        self.batches = batches_by_length([len(ids) for ids in self.suffixes], budget)
        self.stored: dict[int, BlockState] = {}
        """The stored state of each batch, by its number, and of `PREFIXES`."""

    def read(
        self, sites: Sequence[Site], stored_block: int | None
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield each batch with its last tokens' vectors at every site, (rows, width) each.

        The states at the output of `stored_block`, if any, are stored for the next read.
        """
        shared = SharedPrefixCache(self.prefixes)
        if self.prefixes.ids:
            cache = DynamicCache()
            ids = pad_right(self.prefixes.ids, self.model.device)
            inputs = {"past_key_values": cache, "use_cache": True}
            self._run(PREFIXES, ids, sites, stored_block, inputs)
            shared = self.prefixes.read(cache)
        for number, batch in enumerate(self.batches):
            prefix = shared.select(torch.tensor(batch, device=self.model.device))
            yield batch, self._last_vectors(number, batch, prefix, sites, stored_block)

    def _last_vectors(
        self,
        number: int,
        batch: list[int],
        prefix: PrefixCache,
        sites: Sequence[Site],
        stored_block: int | None,
    ) -> list[Tensor]:
        ids = pad_right([self.suffixes[i] for i in batch], self.model.device)
        lengths = torch.tensor([len(self.suffixes[i]) for i in batch], device=ids.device)
        inputs = prefix.forward_inputs(lengths, ids.shape[1]) if prefix.width else {}
        row_index = torch.arange(len(batch), device=ids.device)
        return [
            first_tensor(value)[row_index, lengths - 1]
            for value in self._run(number, ids, sites, stored_block, inputs)
        ]

    def _run(
        self,
        number: int,
        ids: Tensor,
        sites: Sequence[Site],
        stored_block: int | None,
        inputs: dict[str, Any],
    ) -> list[Any]:
        """Run from the stored state, if any, to the last site; return the values at the sites."""
        start = self.stored.get(number)
        forwards = {} if start is None else resuming(self.model, *start)
        if stored_block is None:
            with replaced(forwards):
                return record(self.model, ids, sites, **inputs)
        block_output = Site(family_of(self.model).block(self.model, stored_block), "output")
        with replaced(forwards):
            *found, output = record(self.model, ids, [*sites, block_output], **inputs)
        self.stored[number] = BlockState.of(stored_block, output)
        return found

    def state_bytes(self) -> int:
        """Return the bytes of the stored hidden states."""
        return sum(state.states.nbytes for state in self.stored.values())

    def tokens(self) -> int:
        """Return how many tokens run through a block, padding included."""
        batches = ([self.suffixes[i] for i in batch] for batch in self.batches)
        runs = [self.prefixes.ids, *batches]
        return sum(len(rows) * max(map(len, rows), default=0) for rows in runs)


class LayerwiseReader:
    """Rows whose hidden states are read at one block after another, from the bottom up.

    Between two reads, weights may change in the block that was read and above it, not below.
    """

    def __init__(
        self, model: PreTrainedModel, rows: Sequence[TokenRow], budget: int = TOKENS_AT_ONCE
    ) -> None:
        self.model, self.count = model, len(rows)
        truncated = [row.key for row in rows]
        self.chunks = [
            (indices, _Chunk(model, [truncated[i] for i in indices], budget))
            for indices in _chunks(truncated, PASSES * budget)
        ]

    @torch.no_grad()
    def read(self, sites: Sequence[Site], block: int = 0, room: int = STATE_BYTES) -> list[Tensor]:
        """Return, per site, the vector at each row's position: (rows, width), model's dtype.

        The next read resumes at `block`, which must not be above any site. For that, up to `room`
        bytes of hidden states are stored; chunks beyond it start at the embedding again.
        """
        found: list[Tensor] = []
        for indices, chunk in self.chunks:
            stored_block = block - 1 if block and room > 0 else None
            for batch, vectors in chunk.read(sites, stored_block):
                if not found:
                    found = [vector.new_empty(self.count, vector.shape[1]) for vector in vectors]
                rows = torch.tensor([indices[i] for i in batch], device=self.model.device)
                for all_rows, vector in zip(found, vectors, strict=True):
                    all_rows[rows] = vector
            room -= chunk.state_bytes()
        return found

    def state_bytes(self) -> int:
        """Return the bytes of the stored hidden states."""
        return sum(chunk.state_bytes() for _, chunk in self.chunks)

    def tokens(self) -> int:
        """Return how many tokens run through a block, padding included."""
        return sum(chunk.tokens() for _, chunk in self.chunks)


def _chunks(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[int]]:
    """Split rows into chunks of about `tokens` tokens, rows with common prefixes together."""
    chunk: list[int] = []
    size = 0
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].ids, i)):
        if chunk and size + len(rows[i].ids) > tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += len(rows[i].ids)
    if chunk:
        yield chunk


def read_at(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    budget: int = TOKENS_AT_ONCE,
) -> list[Tensor]:
    """Return, per site, the vector at each row's position: (rows, width), model's dtype."""
    return LayerwiseReader(model, rows, budget).read(sites)
