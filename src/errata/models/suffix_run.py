"""Recompute only what depends on one hidden state.

Changing the output of block b at token position p changes neither blocks up to b nor tokens before
p. `SuffixRun` computes those once, stores the hidden states at block b from p on and the keys and
values of the tokens before p, and then runs only the blocks above b on the tokens from p on (the
suffix), through the model's own forward.

Suffixes of unequal length are padded on the right, which no earlier token attends to.

A block with linear attention has no keys and values but one recurrent state, which cannot be read
at any position of a finished run. Models with such blocks run the blocks above b on `WholeRows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.models.families import family_of
from errata.models.hooks import (
    Site,
    by_rows,
    first_tensor,
    logits_of,
    record,
    replaced,
    states_at,
    with_first,
)
from errata.models.prefix_cache import (
    PrefixCache,
    SharedPrefixCache,
    cache_shared_prefixes,
    caches_tokens,
)
from errata.models.tokens import TokenRow, pad_right


@dataclass(frozen=True)
class WholeRows:
    """Rows that run from their first token on, with the states that do not change."""

    ids: Tensor  # (rows, tokens)
    states: Tensor  # (rows, tokens, d): output of the block
    position: Tensor  # (rows,): where the suffix starts

    def with_suffix(self, states: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (rows, tokens, d) and mask (rows, tokens) with those of the suffix."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)
        index = steps - self.position[:, None]  # (rows, tokens): place in the suffix
        inside = (index >= 0) & (index < keep.shape[1])
        index = index.clamp(0, keep.shape[1] - 1)
        moved = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
        return torch.where(inside[..., None], moved, self.states), keep.gather(1, index) & inside

    def select(self, rows: Tensor) -> WholeRows:
        """Return the rows given by a mask or by indices."""
        return WholeRows(self.ids[rows], self.states[rows], self.position[rows])


@dataclass(frozen=True)
class SuffixRun:
    """The suffix of some rows behind (block, position), ready to run; see the module docstring."""

    model: PreTrainedModel
    block: int
    ids: Tensor  # (rows, suffix)
    lengths: Tensor  # (rows,): real tokens in the suffix
    states: Tensor  # (rows, suffix, d): output of `block` from the position on
    cache: PrefixCache  # keys and values of the blocks above `block`, before the position
    whole: WholeRows | None  # where there are no keys and values, so that `cache` is empty
    mlp_output: Tensor | None  # (rows, d): MLP output at the position, where it is then changed
    tuple_size: int  # elements of the tuple that a block returns; 0 for a bare tensor

    @classmethod
    @torch.no_grad()
    def prepare(
        cls,
        model: PreTrainedModel,
        rows: Sequence[TokenRow],
        block: int,
        prefix: PrefixCache | None = None,
    ) -> SuffixRun:
        """Run `rows` once and store what `run` needs.

        `prefix` is the cache of their first tokens, if these have run already (see
        `shared_prefixes`).
        """
        family, device = family_of(model), model.device
        last = family.block_count(model) - 1
        if prefix is None:
            prefix = PrefixCache.empty(len(rows), device)
        position = torch.tensor([row.position for row in rows], device=device)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device) - position
        done = prefix.lengths.tolist()
        ids = pad_right([row.ids[n:] for row, n in zip(rows, done, strict=True)], device)
        inputs: dict[str, Any] = {}
        if caches_tokens(model):
            inputs = prefix.forward_inputs(position + lengths - prefix.lengths, ids.shape[1])
        normed = family.after_mlp(model, block) is not None
        sites = _sites(model, block)
        sites += [Site(family.mlp_out(model, block), "output")] if normed else []
        output, *others = record(model, ids, sites, **inputs)
        steps = torch.arange(int(lengths.max()), device=device)
        index = (position - prefix.lengths)[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        state, row_index = first_tensor(output), torch.arange(len(rows), device=device)
        whole = None if caches_tokens(model) else WholeRows(ids, state, position)
        return cls(
            model=model,
            block=block,
            ids=pad_right([row.ids[row.position :] for row in rows], device),
            lengths=lengths,
            states=state.gather(1, index[..., None].expand(-1, -1, state.shape[-1])),
            cache=PrefixCache.empty(len(rows), device)
            if whole
            else PrefixCache.read(
                inputs["past_key_values"],
                prefix.width - prefix.lengths,
                position,
                range(block + 1, last + 1),
            ),
            whole=whole,
            mlp_output=others[-1][row_index, index[:, 0]] if normed else None,
            tuple_size=len(output) if isinstance(output, tuple) else 0,
        )

    @staticmethod
    @torch.no_grad()
    def shared_prefixes(
        model: PreTrainedModel, rows: Sequence[TokenRow], block: int
    ) -> SharedPrefixCache:
        """Run the prefixes that rows share before their positions; see `prepare`."""
        ids, limits = [row.ids for row in rows], [row.position for row in rows]
        return cache_shared_prefixes(model, ids, limits, _sites(model, block))

    def select(self, rows: Tensor) -> SuffixRun:
        """Return the suffix run of the rows given by a mask or by indices."""
        return replace(
            self,
            ids=self.ids[rows],
            lengths=self.lengths[rows],
            states=self.states[rows],
            cache=self.cache.select(rows),
            whole=None if self.whole is None else self.whole.select(rows),
            mlp_output=None if self.mlp_output is None else self.mlp_output[rows],
        )

    def with_delta(self, delta: Tensor) -> Tensor:
        """Return `states` with δ (rows, d) added at the position.

        δ is added to the block's output or, where a norm follows the MLP, to that norm's input: the
        MLP cannot make an arbitrary change behind the norm.
        """
        norm, change = family_of(self.model).after_mlp(self.model, self.block), delta
        if norm is not None and self.mlp_output is not None:
            dtype = torch.promote_types(self.mlp_output.dtype, delta.dtype)
            output = self.mlp_output.to(dtype)
            change = norm(output + delta) - norm(output)
        first = self.states[:, :1] + change[:, None].to(self.states.dtype)
        return torch.cat([first, self.states[:, 1:]], dim=1)

    def run(self, states: Tensor, keep: Tensor, last_block: int | None = None) -> Tensor:
        """Run the blocks above `block` on `states` (rows, suffix, d); return logits (n, V).

        `keep` (rows, suffix) is a boolean mask of the n positions whose logits are returned. With
        `last_block`, later blocks are skipped and the final norm and head read its output.
        """
        return logits_of(self.model, self.hidden(states, keep, last_block))

    def hidden(self, states: Tensor, keep: Tensor, last_block: int | None = None) -> Tensor:
        """Like `run`, but return the final hidden states, which the head reads: (n, d)."""
        family = family_of(self.model)
        count = family.block_count(self.model)
        end = count if last_block is None else last_block + 1
        if self.whole is None:
            ids, inputs = self.ids, self.cache.forward_inputs(self.lengths, self.ids.shape[1])
        else:
            ids, (states, keep) = self.whole.ids, self.whole.with_suffix(states, keep)
            inputs = {"attention_mask": torch.ones_like(ids), "use_cache": False}
        forwards = resuming(self.model, self.block, states, self.tuple_size, range(end, count))
        if end > self.block + 1:
            mlp = family.mlp(self.model, end - 1)
            forwards[mlp] = _at_mask(keep, mlp.forward)
        with replaced(forwards):
            return states_at(self.model, keep, input_ids=ids, **inputs)


def resuming(
    model: PreTrainedModel,
    block: int,
    states: Tensor,
    tuple_size: int,
    skipped: Iterable[int] = (),
) -> dict[nn.Module, Callable[..., object]]:
    """Return forwards (see `hooks.replaced`) with which a model resumes behind `block`.

    `block` outputs `states`; the blocks below it and those in `skipped` return their input. Blocks
    return a tuple of `tuple_size` elements, or a bare tensor where that is 0.
    """

    def identity(hidden: Tensor, *args: object, **kwargs: object) -> object:
        return (hidden, *[None] * (tuple_size - 1)) if tuple_size else hidden

    def inject(*args: object, **kwargs: object) -> object:
        return identity(states)

    family = family_of(model)
    identities = {family.block(model, i): identity for i in (*range(block), *skipped)}
    return {**identities, family.block(model, block): inject}


def _sites(model: PreTrainedModel, block: int) -> list[Site]:
    """Return the sites to record: the block's output, and the last that needs keys and values."""
    family = family_of(model)
    last = family.block_count(model) - 1
    sites = [Site(family.block(model, block), "output")]
    if block < last:  # the cache is complete once the last attention has run
        sites.append(Site(family.attention(model, last), "output"))
    return sites


def _at_mask(keep: Tensor, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `forward` that computes only the positions in `keep`; no others are read later.

    All its arguments are states.
    """

    def run(*states: Tensor) -> Any:
        few = [by_rows(state, len(keep))[keep] for state in states]  # (n, d)
        out = forward(
            *(
                each if state.ndim == 2 else each[None]
                for each, state in zip(few, states, strict=True)
            )
        )
        found = first_tensor(out).flatten(0, -2)
        whole = found.new_zeros(*keep.shape, found.shape[-1])
        whole = whole.masked_scatter(keep[..., None], found)
        return with_first(out, whole.view(states[0].shape[:-1] + found.shape[-1:]))

    return run
