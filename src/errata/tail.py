"""Compute only what a change at one place can reach.

A vector changed at the output of block b and token position p cannot change blocks up
to b, nor any token before p. `Tail` computes those once, keeps the states at block b
from p on and the keys and values of the tokens before p, and then runs only the blocks
above b on only the tokens from p on, through the model's own forward.

All rows of a tail have the same number of tokens from p on; the tokens before p are
moved to the right end of a common width and the gap is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from errata.family import family_of
from errata.hooks import Site, first_tensor, logits_at, record, replaced
from errata.tokens import Row, pad_right


@dataclass(frozen=True)
class Tail:
    """The part of some rows that a change at (block, position) can reach; see the module's head."""

    model: PreTrainedModel
    block: int
    ids: Tensor  # (rows, suffix)
    states: Tensor  # (rows, suffix, d): output of `block` from the position on
    prefix: tuple[
        tuple[Tensor, Tensor], ...
    ]  # per block: keys, values (rows, heads, prefix, d_head)
    lengths: Tensor  # (rows,): real tokens in the prefix
    said: Tensor | None  # (rows, d): what the MLP says at the position, where a norm follows it
    tuple_size: int  # how many things a block returns; 0 for a bare tensor

    @classmethod
    @torch.no_grad()
    def prepare(cls, model: PreTrainedModel, rows: Sequence[Row], block: int) -> Tail:
        """Run `rows` once in full and keep what `run` needs. All suffixes must be equally long."""
        suffix = len(rows[0].ids) - rows[0].position
        assert all(len(row.ids) - row.position == suffix for row in rows), "unequal suffixes"
        family, device = family_of(model), model.device
        cache = DynamicCache()
        read = [block, family.block_count(model) - 1]
        modules = [*dict.fromkeys(family.block(model, index) for index in read)]
        normed = family.post_norm(model, block) is not None
        modules += [family.write(model, block)] if normed else []
        output, *others = record(
            model,
            pad_right([row.ids for row in rows], device),
            [Site(module, "output") for module in modules],
            past_key_values=cache,
            use_cache=True,
        )
        lengths = torch.tensor([row.position for row in rows], device=device)
        place = lengths[:, None] + torch.arange(suffix, device=device)  # (rows, suffix)
        state = first_tensor(output)
        return cls(
            model=model,
            block=block,
            ids=torch.tensor([row.ids[row.position :] for row in rows], device=device),
            states=state.gather(1, place[..., None].expand(-1, -1, state.shape[-1])),
            prefix=tuple(
                _shift(layer, lengths, index > block) for index, layer in enumerate(cache.layers)
            ),
            lengths=lengths,
            said=others[-1][torch.arange(len(rows)), lengths] if normed else None,
            tuple_size=len(output) if isinstance(output, tuple) else 0,
        )

    def select(self, rows: Tensor) -> Tail:
        """Return the tail of some of its rows: a mask or indices."""
        prefix = tuple(
            (keys[rows], values[rows]) if index > self.block else (keys, values)
            for index, (keys, values) in enumerate(self.prefix)
        )
        return replace(
            self,
            ids=self.ids[rows],
            states=self.states[rows],
            lengths=self.lengths[rows],
            said=None if self.said is None else self.said[rows],
            prefix=prefix,
        )

    def moved(self, delta: Tensor) -> Tensor:
        """Return `states` with δ (rows, d) added at the position.

        It is added to the block's output or, where a norm follows the MLP, to what goes into
        that norm: a change behind it is not one that the MLP can make.
        """
        norm, change = family_of(self.model).post_norm(self.model, self.block), delta
        if norm is not None and self.said is not None:
            said = self.said.to(torch.promote_types(self.said.dtype, delta.dtype))
            change = norm(said + delta) - norm(said)
        first = self.states[:, :1] + change[:, None].to(self.states.dtype)
        return torch.cat([first, self.states[:, 1:]], dim=1)

    def run(self, states: Tensor, keep: Tensor, last_block: int | None = None) -> Tensor:
        """Run the blocks above `block` on `states` (rows, suffix, d): logits (kept, vocabulary).

        `keep` is a boolean (rows, suffix) mask of the places whose logits are wanted.
        With `last_block` the blocks after it are left out, and the final norm and head
        read its output.
        """
        family = family_of(self.model)
        count = family.block_count(self.model)
        end = count if last_block is None else last_block + 1
        skipped = [index for index in range(count) if index <= self.block or index >= end]

        def hand_on(hidden: Tensor, *args: object, **kwargs: object) -> object:
            return (hidden, *[None] * (self.tuple_size - 1)) if self.tuple_size else hidden

        def inject(*args: object, **kwargs: object) -> object:
            return hand_on(states)

        forwards = {
            family.block(self.model, index): inject if index == self.block else hand_on
            for index in skipped
        }
        with replaced(forwards):
            return logits_at(self.model, keep, input_ids=self.ids, **self._surroundings())

    def _surroundings(self) -> dict[str, object]:
        """The cache, mask and positions that make the suffix see its prefix, new at every call."""
        rows, suffix = self.ids.shape
        width = self.prefix[0][0].shape[-2]
        steps = torch.arange(suffix, device=self.ids.device)
        cache = DynamicCache()
        if width:
            cache.layers = [_layer(keys, values, rows) for keys, values in self.prefix]
        real = torch.arange(width, device=self.ids.device) >= width - self.lengths[:, None]
        ones = torch.ones(rows, suffix, dtype=torch.bool, device=self.ids.device)
        return {
            "past_key_values": cache,
            "use_cache": True,
            "attention_mask": torch.cat([real, ones], dim=1).long(),
            "position_ids": self.lengths[:, None] + steps,
        }


def _shift(layer: DynamicLayer, lengths: Tensor, needed: bool) -> tuple[Tensor, Tensor]:
    """Right-align the first `lengths` entries of a layer's keys and values.

    Blocks that will not run only tell their width, without memory.
    """
    assert type(layer) is DynamicLayer, type(layer)
    width = int(lengths.max())
    if not needed:
        empty = layer.keys.new_zeros(1, 1, 1, 1).expand(1, 1, width, 1)
        return empty, empty
    source = torch.arange(width, device=lengths.device) - (
        width - lengths[:, None]
    )  # (rows, width)
    index = source.clamp(min=0)[:, None, :, None]
    return tuple(
        tensor.gather(2, index.expand(-1, tensor.shape[1], -1, tensor.shape[-1]))
        for tensor in (layer.keys, layer.values)
    )


def _layer(keys: Tensor, values: Tensor, rows: int) -> DynamicLayer:
    """A cache layer that holds the prefix; appending makes new tensors and leaves these alone."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer
