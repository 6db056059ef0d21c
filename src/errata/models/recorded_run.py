"""One full run, kept so that it can be restarted behind any block and from any token.

A `RecordedRun` holds the output of every block and the keys and values of every token; `tail`
cuts from it what a change at one block and token can reach (see `tail`), without running
anything again. It serves causal traces and the logit lens, which change or read the same run
at all places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, record, replaced, steered
from errata.models.prefix_cache import PrefixCache
from errata.models.suffix_run import SuffixRun

Changes = Mapping[nn.Module, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class RecordedRun:
    """What one run of some rows of equal length left behind."""

    model: PreTrainedModel
    ids: Tensor  # (rows, tokens)
    states: tuple[Tensor, ...]  # per block: (rows, tokens, d), its output
    cache: tuple[tuple[Tensor, Tensor], ...]  # per block: keys, values (rows, heads, tokens, d_h)
    tuple_size: int  # how many things a block returns; 0 for a bare tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, ids: Tensor, changes: Changes | None = None) -> RecordedRun:
        """Run `ids` (rows, tokens) once, what the modules in `changes` give being changed."""
        family, cache = family_of(model), DynamicCache()
        blocks = range(family.block_count(model))
        sites = [Site(family.block(model, index), "output") for index in blocks]
        with steered(changes or {}):
            outputs = record(model, ids, sites, past_key_values=cache, use_cache=True)
        last = outputs[-1]
        return cls(
            model=model,
            ids=ids,
            states=tuple(first_tensor(output) for output in outputs),
            cache=tuple((layer.keys, layer.values) for layer in cache.layers),
            tuple_size=len(last) if isinstance(last, tuple) else 0,
        )

    def tail(self, block: int, position: int, rows: Sequence[int] | None = None) -> SuffixRun:
        """Return the tail behind `block` from `position` on; of some rows, in their order."""
        chosen = torch.arange(len(self.ids)) if rows is None else torch.tensor(list(rows))
        chosen = chosen.to(self.ids.device)
        layers = []
        for index, (keys, values) in enumerate(self.cache):
            if index > block:
                layers.append((keys[chosen, :, :position], values[chosen, :, :position]))
            else:  # it will not run, and only tells how wide the past is
                none = keys.new_zeros(1, 1, 1, 1).expand(len(chosen), 1, position, 1)
                layers.append((none, none))
        ends = torch.full((len(chosen),), self.ids.shape[1] - position, device=self.ids.device)
        return SuffixRun(
            model=self.model,
            block=block,
            ids=self.ids[chosen, position:],
            ends=ends,
            states=self.states[block][chosen, position:],
            past=PrefixCache(tuple(layers), torch.full_like(ends, position)),
            said=None,
            tuple_size=self.tuple_size,
        )


@dataclass(frozen=True)
class Contributions:
    """What one kind of module adds in each block, and where its block would go with another's."""

    outputs: tuple[Tensor, ...]
    """Per block: (rows, tokens, d), what the module gives."""
    exchanged: tuple[Tensor, ...]
    """Per block: (rows, tokens, d), the block's output if, at that token, the module of this
    block alone had given what it gives in the first row."""


@torch.no_grad()
def contributions(
    model: PreTrainedModel, ids: Tensor, modules: Sequence[nn.Module], changes: Changes
) -> Contributions:
    """Run `ids` (rows, tokens) once and tell what `modules`, one in each block, contribute.

    Each block runs twice on the same input, the second time with the first row's output of its
    module in all rows. Attention aside, a block works on each token alone, so what is exchanged
    at one token shows at no other: one run tells the outcome of an exchange at every token. A
    norm behind the module, where a family has one, works on each token alone as well.
    """
    family, exchanging = family_of(model), False
    outputs: list[Tensor] = []
    exchanged: list[Tensor] = []

    def exchange(state: Tensor) -> Tensor:
        if exchanging:
            return outputs[-1][:1].expand_as(state)
        outputs.append(state)
        return state

    def twice(forward: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            nonlocal exchanging
            output = forward(*args, **kwargs)
            exchanging = True
            try:
                exchanged.append(first_tensor(forward(*args, **kwargs)))
            finally:
                exchanging = False
            return output

        return run

    blocks = [family.block(model, index) for index in range(family.block_count(model))]
    forwards = {block: twice(block.forward) for block in blocks}
    sites = [Site(blocks[-1], "output")]
    with steered({**changes, **dict.fromkeys(modules, exchange)}), replaced(forwards):
        record(model, ids, sites)
    assert len(outputs) == len(exchanged) == len(blocks), (len(outputs), len(exchanged))
    return Contributions(tuple(outputs), tuple(exchanged))
