"""Keys: what the MLP output matrix of a block reads at the edited position.

A key is the input of that matrix at one token (d_in numbers), averaged over context
prefixes. Rows are cut at the position, since a causal model cannot see further, run in
batches by length, and stopped at the module that is read; what they begin alike with, the
prefixes above all, is run once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.family import family_of
from errata.hooks import Site, first_tensor, record
from errata.past import common_past
from errata.tokens import Rewrite, Row, batches_by_length, pad_right

TOKENS_AT_ONCE = 4096
"""Rows x tokens of one forward pass, where nothing else is said."""
PASSES = 4
"""Forward passes whose rows are looked at together for what they begin alike with."""
REQUESTS = 256
"""Requests whose rows are read before they are averaged: memory is that of so many, not of all."""


@torch.no_grad()
def read_at(
    model: PreTrainedModel, rows: Sequence[Row], sites: Sequence[Site], budget: int = TOKENS_AT_ONCE
) -> list[Tensor]:
    """Return, per site, what stands there at each row's position: (rows, width), model's dtype."""
    rows = [row.key for row in rows]
    found: list[Tensor] = []
    for few in _alike(rows, PASSES * budget):
        for batch, vectors in _read(model, [rows[i] for i in few], sites, budget):
            if not found:
                found = [vector.new_empty(len(rows), vector.shape[1]) for vector in vectors]
            places = torch.tensor([few[i] for i in batch], device=model.device)
            for whole, part in zip(found, vectors, strict=True):
                whole[places] = part
    return found


def _alike(rows: Sequence[Row], tokens: int) -> Iterator[list[int]]:
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


def _read(
    model: PreTrainedModel, rows: Sequence[Row], sites: Sequence[Site], budget: int
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yield batches of rows with what stands at each site; what they begin with runs once."""
    past = common_past(model, [row.ids for row in rows], [row.position for row in rows], sites)
    done = past.lengths.tolist()
    lengths = [len(row.ids) - n for row, n in zip(rows, done, strict=True)]
    for batch in batches_by_length(lengths, budget):
        before = past.select(torch.tensor(batch, device=model.device))
        ids = pad_right([rows[i].ids[done[i] :] for i in batch], model.device)
        ends = torch.tensor([lengths[i] for i in batch], device=model.device)
        line = torch.arange(len(batch), device=model.device)
        around = before.around(ends, ids.shape[1]) if before.width else {}
        states = record(model, ids, sites, **around)
        yield batch, [first_tensor(state)[line, ends - 1] for state in states]


def keys_of(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], block: int
) -> tuple[Tensor, Tensor]:
    """Return each request's key at `block` with and without prefixes: (n, d_in) each, float32.

    The first is the mean within each group of prefixes, then over groups, as the request's
    `keys` say; the second that of the bare prompt alone.
    """
    site = Site(family_of(model).write(model, block), "input")
    keys, bare = [], []
    for start in range(0, len(rewrites), REQUESTS):
        few = rewrites[start : start + REQUESTS]
        rows = [row for rewrite in few for group in rewrite.keys for row in group]
        vectors = iter(read_at(model, rows, [site])[0].float().split(_sizes(few)))
        for rewrite in few:
            groups = list(islice(vectors, len(rewrite.keys)))
            keys.append(torch.stack([group.mean(0) for group in groups]).mean(0))
            bare.append(groups[0][0].clone())
    return torch.stack(keys), torch.stack(bare)


def _sizes(rewrites: Sequence[Rewrite]) -> list[int]:
    return [len(group) for rewrite in rewrites for group in rewrite.keys]


def bare_rows(rewrites: Sequence[Rewrite]) -> list[Row]:
    """Return each request's row without a prefix."""
    return [rewrite.keys[0][0] for rewrite in rewrites]
