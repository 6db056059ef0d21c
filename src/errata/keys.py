"""Keys: what the MLP output matrix of a block reads at the edited position.

A key is the input of that matrix at one token (d_in numbers), averaged over context
prefixes. Rows are cut at the position, since a causal model cannot see further, run in
batches by length, and stopped at the module that is read; what they begin alike with, the
prefixes above all, is run once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.family import family_of
from errata.hooks import Site, first_tensor, record
from errata.past import common_past
from errata.tokens import Rewrite, Row, batches_by_length, pad_right

TOKENS_AT_ONCE = 4096
"""Rows x tokens of one forward pass, where nothing else is said."""


@torch.no_grad()
def read_at(
    model: PreTrainedModel, rows: Sequence[Row], sites: Sequence[Site], budget: int = TOKENS_AT_ONCE
) -> list[Tensor]:
    """Return, per site, what stands there at each row's position: (rows, width), model's dtype."""
    rows = [row.key for row in rows]
    found: list[list[Tensor | None]] = [[None] * len(rows) for _ in sites]
    past = common_past(model, [row.ids for row in rows], [row.position for row in rows], sites)
    done = past.lengths.tolist()
    lengths = [len(row.ids) - n for row, n in zip(rows, done, strict=True)]
    for batch in batches_by_length(lengths, budget):
        before = past.select(torch.tensor(batch, device=model.device))
        ids = pad_right([rows[i].ids[done[i] :] for i in batch], model.device)
        ends = torch.tensor([lengths[i] for i in batch], device=model.device)
        line = torch.arange(len(batch), device=model.device)
        around = before.around(ends, ids.shape[1]) if before.width else {}
        for site, value in enumerate(record(model, ids, sites, **around)):
            for i, vector in zip(batch, first_tensor(value)[line, ends - 1], strict=True):
                found[site][i] = vector
    return [torch.stack([vector for vector in vectors if vector is not None]) for vectors in found]


def keys_of(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], block: int
) -> tuple[Tensor, Tensor]:
    """Return each request's key at `block` with and without prefixes: (n, d_in) each, float32.

    The first is the mean within each group of prefixes, then over groups, as the request's
    `keys` say; the second that of the bare prompt alone.
    """
    rows = [row for rewrite in rewrites for group in rewrite.keys for row in group]
    site = Site(family_of(model).write(model, block), "input")
    vectors = read_at(model, rows, [site])[0].float()
    keys, bare, start = [], [], 0
    for rewrite in rewrites:
        bare.append(vectors[start])
        means = []
        for group in rewrite.keys:
            means.append(vectors[start : start + len(group)].mean(0))
            start += len(group)
        keys.append(torch.stack(means).mean(0))
    return torch.stack(keys), torch.stack(bare)


def bare_rows(rewrites: Sequence[Rewrite]) -> list[Row]:
    """Return each request's row without a prefix."""
    return [rewrite.keys[0][0] for rewrite in rewrites]
