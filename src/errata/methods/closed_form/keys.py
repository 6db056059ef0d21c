"""Keys: the inputs of a block's MLP output matrix at the edited position.

A key has d_in numbers and is averaged over context prefixes. An edit of several blocks reads
them in ascending order, each with the blocks below it edited (see `models.layerwise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods.closed_form.rewrite import Rewrite
from errata.models.families import family_of
from errata.models.hooks import Site
from errata.models.layerwise import STATE_BYTES, LayerwiseReader
from errata.models.tokens import TokenRow
from errata.patches.base import Edit
from errata.patches.weight_patch import WeightPatch
from errata.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    from errata.methods.closed_form.driver import ClosedForm

REQUESTS = 256
"""Requests per averaging step, which bounds the memory of their rows."""


class Keys:
    """The keys of some requests, block after block in ascending order."""

    def __init__(self, model: PreTrainedModel, rewrites: Sequence[Rewrite]) -> None:
        self.model = model
        self.parts: list[tuple[Sequence[Rewrite], LayerwiseReader]] = []
        for start in range(0, len(rewrites), REQUESTS):
            few = rewrites[start : start + REQUESTS]
            rows = [row for rewrite in few for group in rewrite.keys for row in group]
            self.parts.append((few, LayerwiseReader(model, rows)))

    def at(self, block: int, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """Return each request's key with and without prefixes: (n, d_in) each, float32.

        The first is the mean over groups of the mean within each group of the request's `keys`;
        the second is the key of the bare prompt. After the `last` block no hidden states are
        held.
        """
        site = Site(family_of(self.model).mlp_out(self.model, block), "input")
        keys, bare, room = [], [], 0 if last else STATE_BYTES
        for few, reader in self.parts:
            sizes = [len(group) for rewrite in few for group in rewrite.keys]
            vectors = iter(reader.read([site], block, room)[0].float().split(sizes))
            room -= reader.state_bytes()
            for rewrite in few:
                groups = list(islice(vectors, len(rewrite.keys)))
                keys.append(torch.stack([group.mean(0) for group in groups]).mean(0))
                bare.append(groups[0][0].clone())
        return torch.stack(keys), torch.stack(bare)

    def tokens(self) -> int:
        """Return the number of tokens that run through a block, with padding."""
        return sum(reader.tokens() for _, reader in self.parts)


def keys_of(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], block: int
) -> tuple[Tensor, Tensor]:
    """Return each request's key at one block, with and without prefixes (see `Keys.at`)."""
    return Keys(model, rewrites).at(block, last=True)


def written_keys(
    method: ClosedForm, edit: Edit, moments: Mapping[int, SecondMoment]
) -> list[tuple[SecondMoment, Tensor]]:
    """Return the second moment and the keys K (d_in, n) of every block of an edit just made."""
    assert isinstance(edit, WeightPatch), edit
    keys = [update.K for update in edit.updates.values()]
    blocks = zip(method.edited_blocks, keys, strict=True)
    return [(moments[block], K.double()) for block, K in blocks if K is not None]


def bare_rows(rewrites: Sequence[Rewrite]) -> list[TokenRow]:
    """Return each request's row without a prefix."""
    return [rewrite.keys[0][0] for rewrite in rewrites]
