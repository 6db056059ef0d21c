"""Keys and values of tokens that came before, shared by rows of token ids that begin alike.

A `PrefixCache` holds, per block, the keys and values of the tokens before some rows. Rows may have
different numbers of them: they are right-aligned in a common width and the gap is masked.
`common_past` runs the beginnings that rows have in common, each once: the same context stands
before every request's prompt, and in a causal model nothing that follows can change it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from errata.models.hooks import Site, record
from errata.models.tokens import pad_right

WORTH_A_PASS = 32
"""Tokens that cost about as much as a forward pass of their own, that reads all weights again."""


@dataclass(frozen=True)
class PrefixCache:
    """What attention keeps of the tokens before some rows."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Per block: keys, values (rows, heads, width, d_head)."""
    lengths: Tensor
    """(rows,): real tokens, at the right end of the width."""

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> PrefixCache:
        """Return the past of rows that nothing came before."""
        return cls((), torch.zeros(rows, dtype=torch.long, device=device))

    @classmethod
    def read(
        cls, cache: DynamicCache, start: Tensor, lengths: Tensor, blocks: Container[int]
    ) -> PrefixCache:
        """Take `lengths` tokens from `start` on, (rows,) each, out of a cache.

        Blocks that are not among `blocks`, or did not run, only tell their width, without memory.
        """
        width = int(lengths.max())
        back = torch.arange(width, device=lengths.device) - width  # (width,)
        index = (start + lengths)[:, None] + back  # (rows, width)
        ran = [layer.is_initialized for layer in cache.layers]
        empty = cache.layers[ran.index(True)].keys.new_zeros(1, 1, 1, 1)
        none = empty.expand(len(lengths), 1, width, 1)
        return cls(
            tuple(
                _gathered(layer, index.clamp(min=0))
                if block in blocks and ran[block]
                else (none, none)
                for block, layer in enumerate(cache.layers)
            ),
            lengths,
        )

    @property
    def width(self) -> int:
        """Places per row, the gap included."""
        return self.layers[0][0].shape[-2] if self.layers else 0

    def select(self, rows: Tensor) -> PrefixCache:
        """Return the past of some rows, a mask or indices; a row may be taken several times."""
        return PrefixCache(
            tuple((keys[rows], values[rows]) for keys, values in self.layers),
            self.lengths[rows],
        )

    def around(self, ends: Tensor, width: int) -> dict[str, Any]:
        """Return what makes a forward pass of `width` tokens see this past, new at every call.

        `ends` (rows,) are the real tokens of the rows to be run; padding behind them takes the
        position of the last one, so that none is beyond what the model knows.
        """
        rows, device = len(self.lengths), self.lengths.device
        steps = torch.arange(width, device=device)
        cache = DynamicCache()
        if self.width:
            cache.layers = [_layer(keys, values) for keys, values in self.layers]
        real = torch.arange(self.width, device=device) >= self.width - self.lengths[:, None]
        ones = torch.ones(rows, width, dtype=torch.bool, device=device)
        return {
            "past_key_values": cache,
            "use_cache": True,
            "attention_mask": torch.cat([real, ones], dim=1).long(),
            "position_ids": self.lengths[:, None] + torch.minimum(steps, ends[:, None] - 1),
        }


def _gathered(layer: DynamicLayer, index: Tensor) -> tuple[Tensor, Tensor]:
    assert type(layer) is DynamicLayer, type(layer)
    places = index[:, None, :, None]
    return tuple(
        tensor.gather(2, places.expand(-1, tensor.shape[1], -1, tensor.shape[-1]))
        for tensor in (layer.keys, layer.values)
    )


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    """A cache layer that holds the past; appending makes new tensors and leaves these alone."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


@dataclass(frozen=True)
class SharedPrefixes:
    """What rows of token ids begin alike with, so that it need run but once."""

    ids: tuple[tuple[int, ...], ...]
    """Each beginning that is shared; none where sharing would not save much."""
    whose: Tensor
    """(rows,): which of them is a row's."""
    lengths: Tensor
    """(rows,): how many tokens it takes from there, 0 for a row that shares nothing."""

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], limits: Sequence[int], device: torch.device
    ) -> SharedPrefixes:
        """Find what rows share before their places `limits`."""
        starts = [tuple(row[:limit]) for row, limit in zip(rows, limits, strict=True)]
        groups = worth_sharing(starts, sum(map(len, rows)))
        shared = [(0, 0)] * len(rows)
        for index, (length, members) in enumerate(groups):
            for row in members:
                shared[row] = index, length
        whose, lengths = torch.tensor(shared, device=device).T
        return cls(tuple(starts[rows[0]][:n] for n, rows in groups), whose, lengths)

    def past(self, cache: DynamicCache) -> SharedPrefixCache:
        """Return the rows' past from a cache that the beginnings, padded on the right, left."""
        lengths = torch.tensor([len(ids) for ids in self.ids], device=self.whose.device)
        zeros, blocks = torch.zeros_like(lengths), range(len(cache.layers))
        return SharedPrefixCache(self, PrefixCache.read(cache, zeros, lengths, blocks))


@dataclass(frozen=True)
class SharedPrefixCache:
    """The past of rows that begin alike: each beginning's once, copied when rows are taken."""

    rows: SharedPrefixes
    past: PrefixCache | None = None
    """One row per beginning."""

    def select(self, rows: Tensor) -> PrefixCache:
        """Return the past of some rows, by their indices, no wider than these need."""
        lengths, whose = self.rows.lengths[rows], self.rows.whose[rows]
        width = int(lengths.max())
        if self.past is None or not width:
            return PrefixCache.empty(len(rows), lengths.device)
        return PrefixCache(
            tuple(
                (keys[:, :, -width:][whose], values[:, :, -width:][whose])
                for keys, values in self.past.layers
            ),
            lengths,
        )


def common_past(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    limits: Sequence[int],
    sites: Sequence[Site],
) -> SharedPrefixCache:
    """Run what rows have in common at their beginnings, up to `sites`; return the rows' past.

    A row's past ends before its place `limits[row]`. It is empty for all rows where sharing
    would not save much.
    """
    shared = SharedPrefixes.of(rows, limits, model.device)
    if not shared.ids:
        return SharedPrefixCache(shared)
    cache = DynamicCache()
    ids = pad_right(shared.ids, model.device)
    record(model, ids, sites, past_key_values=cache, use_cache=True)
    return shared.past(cache)


def worth_sharing(starts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, list[int]]]:
    """Return the groups of `beginnings` that share something; none where it saves too little.

    `tokens` is how many the rows have in all.
    """
    groups = [(length, members) for length, members in beginnings(starts) if length]
    saved = sum(length * (len(members) - 1) for length, members in groups)
    return groups if saved >= max(WORTH_A_PASS, tokens // 8) else []


def beginnings(rows: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Group rows so that running each group's common beginning once saves most tokens.

    Returns, per group, the length of its common beginning and its members; a row that shares
    nothing worth sharing is in a group with length 0.
    """
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    shared = [_agree(rows[i], rows[j]) for i, j in pairwise(order)]
    return _best(order, shared)[1] if order else []


def _agree(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _best(order: list[int], shared: list[int]) -> tuple[int, list[tuple[int, list[int]]]]:
    """Return how many tokens can be saved on rows in order, and by which groups."""
    if not shared:
        return 0, [(0, order)]
    least = min(shared)
    whole = least * len(shared)
    cuts = [0, *(i + 1 for i, agreed in enumerate(shared) if agreed == least), len(order)]
    parts = [_best(order[start:end], shared[start : end - 1]) for start, end in pairwise(cuts)]
    apart = sum(saved for saved, _ in parts)
    if whole >= apart:
        return whole, [(least, order)]
    return apart, [group for _, groups in parts for group in groups]
