"""Compute only what a change at one place can reach.

A vector changed at the output of block b and token position p cannot change blocks up
to b, nor any token before p. `SuffixRun` computes those once, keeps the states at block b
from p on and the keys and values of the tokens before p, and then runs only the blocks
above b on only the tokens from p on, through the model's own forward.

Rows that have fewer tokens from p on than others are padded on the right, where nothing sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, logits_of, record, replaced, states_at
from errata.models.prefix_cache import PrefixCache, SharedPrefixCache, common_past
from errata.models.tokens import TokenRow, pad_right


@dataclass(frozen=True)
class SuffixRun:
    """The part of some rows that a change at (block, position) can reach; see the module's head."""

    model: PreTrainedModel
    block: int
    ids: Tensor  # (rows, suffix)
    ends: Tensor  # (rows,): real tokens in the suffix
    states: Tensor  # (rows, suffix, d): output of `block` from the position on
    past: PrefixCache  # of the blocks above, before the position
    said: Tensor | None  # (rows, d): what the MLP says at the position, where a norm follows it
    tuple_size: int  # how many things a block returns; 0 for a bare tensor

    @classmethod
    @torch.no_grad()
    def prepare(
        cls,
        model: PreTrainedModel,
        rows: Sequence[TokenRow],
        block: int,
        before: PrefixCache | None = None,
    ) -> SuffixRun:
        """Run `rows` once and keep what `run` needs.

        `before` is the past of their beginnings, where that was already run (see `beginnings`).
        """
        family, device = family_of(model), model.device
        last = family.block_count(model) - 1
        if before is None:
            before = PrefixCache.empty(len(rows), device)
        position = torch.tensor([row.position for row in rows], device=device)
        ends = torch.tensor([len(row.ids) for row in rows], device=device) - position
        done = before.lengths.tolist()
        ids = pad_right([row.ids[n:] for row, n in zip(rows, done, strict=True)], device)
        around = before.around(position + ends - before.lengths, ids.shape[1])
        normed = family.post_norm(model, block) is not None
        sites = _sites(model, block)
        sites += [Site(family.mlp_out(model, block), "output")] if normed else []
        output, *others = record(model, ids, sites, **around)
        steps = torch.arange(int(ends.max()), device=device)
        place = (position - before.lengths)[:, None] + torch.minimum(steps, ends[:, None] - 1)
        state, line = first_tensor(output), torch.arange(len(rows), device=device)
        return cls(
            model=model,
            block=block,
            ids=pad_right([row.ids[row.position :] for row in rows], device),
            ends=ends,
            states=state.gather(1, place[..., None].expand(-1, -1, state.shape[-1])),
            past=PrefixCache.read(
                around["past_key_values"],
                before.width - before.lengths,
                position,
                range(block + 1, last + 1),
            ),
            said=others[-1][line, place[:, 0]] if normed else None,
            tuple_size=len(output) if isinstance(output, tuple) else 0,
        )

    @staticmethod
    @torch.no_grad()
    def beginnings(
        model: PreTrainedModel, rows: Sequence[TokenRow], block: int
    ) -> SharedPrefixCache:
        """Run what rows begin alike with, up to their positions, for tails to be prepared from."""
        ids, limits = [row.ids for row in rows], [row.position for row in rows]
        return common_past(model, ids, limits, _sites(model, block))

    def select(self, rows: Tensor) -> SuffixRun:
        """Return the tail of some of its rows: a mask or indices."""
        return replace(
            self,
            ids=self.ids[rows],
            ends=self.ends[rows],
            states=self.states[rows],
            past=self.past.select(rows),
            said=None if self.said is None else self.said[rows],
        )

    def with_delta(self, delta: Tensor) -> Tensor:
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
        return logits_of(self.model, self.hidden(states, keep, last_block))

    def hidden(self, states: Tensor, keep: Tensor, last_block: int | None = None) -> Tensor:
        """Like `run`, but return what the head reads: (kept, d)."""
        family = family_of(self.model)
        count = family.block_count(self.model)
        end = count if last_block is None else last_block + 1
        forwards = entering(self.model, self.block, states, self.tuple_size, range(end, count))
        if end > self.block + 1:
            mlp = family.mlp(self.model, end - 1)
            forwards[mlp] = _only_where(keep, mlp.forward)
        around = self.past.around(self.ends, self.ids.shape[1])
        with replaced(forwards):
            return states_at(self.model, keep, input_ids=self.ids, **around)


def entering(
    model: PreTrainedModel,
    block: int,
    states: Tensor,
    tuple_size: int,
    left_out: Iterable[int] = (),
) -> dict[nn.Module, Callable[..., object]]:
    """Return forwards with which a model begins behind `block`: that one puts out `states`.

    Blocks below it and those `left_out` hand on what they are given, in a tuple of `tuple_size`
    things where that is what blocks return (see `SuffixRun`).
    """

    def hand_on(hidden: Tensor, *args: object, **kwargs: object) -> object:
        return (hidden, *[None] * (tuple_size - 1)) if tuple_size else hidden

    def inject(*args: object, **kwargs: object) -> object:
        return hand_on(states)

    family = family_of(model)
    skipped = {family.block(model, index): hand_on for index in (*range(block), *left_out)}
    return {**skipped, family.block(model, block): inject}


def _sites(model: PreTrainedModel, block: int) -> list[Site]:
    """Return what to read: the block's output, and where all keys and values are there."""
    family = family_of(model)
    last = family.block_count(model) - 1
    sites = [Site(family.block(model, block), "output")]
    if block < last:  # the last block's are there once its attention ran
        attention = family.block(model, last).get_submodule(family.block_attention)
        sites.append(Site(attention, "output"))
    return sites


def _only_where(keep: Tensor, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a `forward` that works on the kept places alone, since no other is read after it."""

    def run(hidden: Tensor) -> Tensor:
        out = forward(hidden[keep][None])[0]
        return out.new_zeros(*keep.shape, out.shape[-1]).masked_scatter(keep[..., None], out)

    return run
