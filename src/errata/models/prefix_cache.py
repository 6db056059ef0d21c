"""Key-value caches of prefixes, computed once for all rows of token ids that share one.

A `PrefixCache` holds, per block, the keys and values of each row's prefix. Prefixes may differ in
length: they are right-aligned in a common width and the padding is masked. `cache_shared_prefixes`
runs each shared prefix once: requests have context sentences in common, and in a causal model the
tokens that follow cannot change their keys and values.
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
"""Tokens that cost about as much as one extra forward pass, which reads all weights again."""


def caches_tokens(model: PreTrainedModel) -> bool:
    """Return whether the model's cache has keys and values of each token in every block.

    A block with linear attention has one recurrent state instead, from which that of an earlier
    token cannot be read.
    """
    layers = DynamicCache(config=model.config).layers
    return all(isinstance(layer, DynamicLayer) for layer in layers)


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the tokens that precede each row."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Per block: keys, values (rows, heads, width, d_head)."""
    lengths: Tensor
    """(rows,): prefix tokens per row, right-aligned in the width."""

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> PrefixCache:
        """Return the cache of rows without a prefix."""
        return cls((), torch.zeros(rows, dtype=torch.long, device=device))

    @classmethod
    def read(
        cls, cache: DynamicCache, start: Tensor, lengths: Tensor, blocks: Container[int]
    ) -> PrefixCache:
        """Read from a cache, for each row, `lengths` tokens from `start` on; both are (rows,).

        Blocks outside `blocks`, and those that did not run, get placeholders of the same width that
        take no memory.
        """
        width = int(lengths.max())
        offsets = torch.arange(width, device=lengths.device) - width  # (width,)
        index = (start + lengths)[:, None] + offsets  # (rows, width)
        ran = [layer.is_initialized for layer in cache.layers]
        zero = cache.layers[ran.index(True)].keys.new_zeros(1, 1, 1, 1)
        placeholder = zero.expand(len(lengths), 1, width, 1)
        return cls(
            tuple(
                _gather_layer(layer, index.clamp(min=0))
                if block in blocks and ran[block]
                else (placeholder, placeholder)
                for block, layer in enumerate(cache.layers)
            ),
            lengths,
        )

    @property
    def width(self) -> int:
        """Positions per row, padding included."""
        return self.layers[0][0].shape[-2] if self.layers else 0

    def select(self, rows: Tensor) -> PrefixCache:
        """Return the cache of the rows given by a mask or by indices, which may repeat."""
        return PrefixCache(
            tuple((keys[rows], values[rows]) for keys, values in self.layers),
            self.lengths[rows],
        )

    def forward_inputs(self, lengths: Tensor, width: int) -> dict[str, Any]:
        """Return the arguments with which a forward pass of `width` tokens attends to the prefix.

        `lengths` (rows,) are the real tokens of the rows to run. Padding after them repeats the
        last position, so that no position exceeds the model's maximum. The cache in the result is
        new at every call.
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
            "position_ids": self.lengths[:, None] + torch.minimum(steps, lengths[:, None] - 1),
        }


def _gather_layer(layer: DynamicLayer, index: Tensor) -> tuple[Tensor, Tensor]:
    assert type(layer) is DynamicLayer, type(layer)
    index = index[:, None, :, None]
    return tuple(
        tensor.gather(2, index.expand(-1, tensor.shape[1], -1, tensor.shape[-1]))
        for tensor in (layer.keys, layer.values)
    )


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    """Return a cache layer of a prefix; appending to it makes new tensors."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


@dataclass(frozen=True)
class SharedPrefixes:
    """The prefixes that rows of token ids share, so that each runs once."""

    ids: tuple[tuple[int, ...], ...]
    """The shared prefixes; empty where sharing would not save much."""
    prefix: Tensor
    """(rows,): index into `ids` of each row's prefix."""
    lengths: Tensor
    """(rows,): tokens that each row takes from its prefix, 0 for a row that shares none."""

    @classmethod
    def of(
        cls, model: PreTrainedModel, rows: Sequence[Sequence[int]], limits: Sequence[int]
    ) -> SharedPrefixes:
        """Find the prefixes that rows share; row i's ends before position `limits[i]`.

        There are none for a model whose cache has no keys and values of each token.
        """
        starts = [tuple(row[:limit]) for row, limit in zip(rows, limits, strict=True)]
        groups = worth_sharing(starts, sum(map(len, rows))) if caches_tokens(model) else []
        shared = [(0, 0)] * len(rows)
        for index, (length, members) in enumerate(groups):
            for row in members:
                shared[row] = index, length
        prefix, lengths = torch.tensor(shared, device=model.device).T
        return cls(tuple(starts[rows[0]][:n] for n, rows in groups), prefix, lengths)

    def read(self, cache: DynamicCache) -> SharedPrefixCache:
        """Return the rows' cache, read from that of a run over `ids`, padded on the right."""
        lengths = torch.tensor([len(ids) for ids in self.ids], device=self.prefix.device)
        zeros, blocks = torch.zeros_like(lengths), range(len(cache.layers))
        return SharedPrefixCache(self, PrefixCache.read(cache, zeros, lengths, blocks))


@dataclass(frozen=True)
class SharedPrefixCache:
    """The cache of rows that share prefixes: one copy per prefix, expanded by `select`."""

    shared: SharedPrefixes
    cache: PrefixCache | None = None
    """One row per shared prefix; None without any."""

    def select(self, rows: Tensor) -> PrefixCache:
        """Return the cache of some rows, by their indices, as wide as their longest prefix."""
        lengths, prefix = self.shared.lengths[rows], self.shared.prefix[rows]
        width = int(lengths.max())
        if self.cache is None or not width:
            return PrefixCache.empty(len(rows), lengths.device)
        return PrefixCache(
            tuple(
                (keys[:, :, -width:][prefix], values[:, :, -width:][prefix])
                for keys, values in self.cache.layers
            ),
            lengths,
        )


def cache_shared_prefixes(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    limits: Sequence[int],
    sites: Sequence[Site],
) -> SharedPrefixCache:
    """Run the prefixes that rows share, up to `sites`; return the rows' key-value cache.

    The prefix of row i ends before position `limits[i]`. The cache is empty for all rows where
    sharing would not save much.
    """
    shared = SharedPrefixes.of(model, rows, limits)
    if not shared.ids:
        return SharedPrefixCache(shared)
    cache = DynamicCache()
    ids = pad_right(shared.ids, model.device)
    record(model, ids, sites, past_key_values=cache, use_cache=True)
    return shared.read(cache)


def worth_sharing(starts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, list[int]]]:
    """Return the groups of `group_by_prefix` that share one; none where it saves too little.

    `tokens` is the total number of tokens in the rows.
    """
    groups = [(length, members) for length, members in group_by_prefix(starts) if length]
    saved = sum(length * (len(members) - 1) for length, members in groups)
    return groups if saved >= max(WORTH_A_PASS, tokens // 8) else []


def group_by_prefix(rows: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Group rows so that running each group's common prefix once saves the most tokens.

    Returns, per group, the length of the common prefix and the indices of its rows. Rows that
    share no prefix worth running form groups of length 0.
    """
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    shared = [_common_length(rows[i], rows[j]) for i, j in pairwise(order)]
    return _best_groups(order, shared)[1] if order else []


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _best_groups(order: list[int], shared: list[int]) -> tuple[int, list[tuple[int, list[int]]]]:
    """Return the most tokens that can be saved on rows in this order, and the groups that do.

    `shared` are the common prefix lengths of neighbours: one group saves the least of them per
    row after the first; otherwise the rows are split where that least length occurs.
    """
    if not shared:
        return 0, [(0, order)]
    least = min(shared)
    together = least * len(shared)
    cuts = [0, *(i + 1 for i, length in enumerate(shared) if length == least), len(order)]
    parts = [
        _best_groups(order[start:end], shared[start : end - 1]) for start, end in pairwise(cuts)
    ]
    split = sum(saved for saved, _ in parts)
    if together >= split:
        return together, [(least, order)]
    return split, [group for _, groups in parts for group in groups]
