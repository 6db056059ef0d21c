"""Keys: what the MLP output matrix of a block reads at the edited position.

A key is the input of that matrix at one token (d_in numbers), averaged over context
prefixes. An edit that writes several blocks reads them upwards, each as the ones below are
written (see `climb`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods.closed_form.encoding import Rewrite
from errata.models.families import family_of
from errata.models.hooks import Site
from errata.models.layerwise import HELD_BYTES, LayerwiseReader
from errata.models.tokens import TokenRow

REQUESTS = 256
"""Requests whose rows are read before they are averaged: memory is that of so many, not of all."""


class Keys:
    """The keys of some requests, at one block after another, upwards."""

    def __init__(self, model: PreTrainedModel, rewrites: Sequence[Rewrite]) -> None:
        self.model = model
        self.parts: list[tuple[Sequence[Rewrite], LayerwiseReader]] = []
        for start in range(0, len(rewrites), REQUESTS):
            few = rewrites[start : start + REQUESTS]
            rows = [row for rewrite in few for group in rewrite.keys for row in group]
            self.parts.append((few, LayerwiseReader(model, rows)))

    def at(self, block: int, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """Return each request's key with and without prefixes: (n, d_in) each, float32.

        The first is the mean within each group of prefixes, then over groups, as the request's
        `keys` say; the second that of the bare prompt alone. After the `last` block nothing is
        kept for the next one.
        """
        site = Site(family_of(self.model).mlp_out(self.model, block), "input")
        keys, bare, room = [], [], 0 if last else HELD_BYTES
        for few, climb in self.parts:
            sizes = [len(group) for rewrite in few for group in rewrite.keys]
            vectors = iter(climb.read([site], block, room)[0].float().split(sizes))
            room -= climb.held()
            for rewrite in few:
                groups = list(islice(vectors, len(rewrite.keys)))
                keys.append(torch.stack([group.mean(0) for group in groups]).mean(0))
                bare.append(groups[0][0].clone())
        return torch.stack(keys), torch.stack(bare)

    def tokens(self) -> int:
        """Return how many tokens run through a block, padding included."""
        return sum(climb.tokens() for _, climb in self.parts)


def keys_of(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], block: int
) -> tuple[Tensor, Tensor]:
    """Return each request's key at one block, with and without prefixes (see `Keys.at`)."""
    return Keys(model, rewrites).at(block, last=True)


def bare_rows(rewrites: Sequence[Rewrite]) -> list[TokenRow]:
    """Return each request's row without a prefix."""
    return [rewrite.keys[0][0] for rewrite in rewrites]
