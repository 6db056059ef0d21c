"""One full forward pass, recorded so that it can resume behind any block, from any token.

A `RecordedRun` stores the output of every block and the keys and values of every token. Its
`suffix_run` takes from it what depends on one hidden state (see `models.suffix_run`) without a
forward pass. Causal tracing and the logit lens change or read one run at every position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, record, replaced, steered
from errata.models.prefix_cache import PrefixCache, caches_tokens
from errata.models.suffix_run import SuffixRun, WholeRows

Changes = Mapping[nn.Module, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class RecordedRun:
    """The hidden states and key-value cache of one run of rows of equal length."""

    model: PreTrainedModel
    ids: Tensor  # (rows, tokens)
    states: tuple[Tensor, ...]  # per block: (rows, tokens, d), its output
    cache: tuple[tuple[Tensor, Tensor], ...]  # per block: keys, values (rows, heads, tokens, d_h)
    # empty where `caches_tokens` is false
    tuple_size: int  # elements of the tuple that a block returns; 0 for a bare tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, ids: Tensor, changes: Changes | None = None) -> RecordedRun:
        """Run `ids` (rows, tokens) once, with the outputs of modules changed by `changes`."""
        family, cache = family_of(model), DynamicCache()
        blocks = range(family.block_count(model))
        sites = [Site(family.block(model, index), "output") for index in blocks]
        inputs = {"past_key_values": cache, "use_cache": True} if caches_tokens(model) else {}
        with steered(changes or {}, len(ids)):
            outputs = record(model, ids, sites, **inputs)
        last = outputs[-1]
        return cls(
            model=model,
            ids=ids,
            states=tuple(first_tensor(output) for output in outputs),
            cache=tuple((layer.keys, layer.values) for layer in cache.layers),
            tuple_size=len(last) if isinstance(last, tuple) else 0,
        )

    def suffix_run(self, block: int, position: int, rows: Sequence[int] | None = None) -> SuffixRun:
        """Return the suffix behind `block` from `position` on, of `rows` or of all of them."""
        index = torch.arange(len(self.ids)) if rows is None else torch.tensor(list(rows))
        index = index.to(self.ids.device)
        layers = []
        for number, (keys, values) in enumerate(self.cache):
            if number > block:
                layers.append((keys[index, :, :position], values[index, :, :position]))
            else:  # these blocks do not run; the placeholder only has the width of the prefix
                placeholder = keys.new_zeros(1, 1, 1, 1).expand(len(index), 1, position, 1)
                layers.append((placeholder, placeholder))
        lengths = torch.full((len(index),), self.ids.shape[1] - position, device=self.ids.device)
        states, start = self.states[block][index], torch.full_like(lengths, position)
        return SuffixRun(
            model=self.model,
            block=block,
            ids=self.ids[index, position:],
            lengths=lengths,
            states=states[:, position:],
            cache=PrefixCache(tuple(layers), start),
            whole=None if self.cache else WholeRows(self.ids[index], states, start),
            mlp_output=None,
            tuple_size=self.tuple_size,
        )


@dataclass(frozen=True)
class Contributions:
    """The outputs of one module per block, and each block's output with that module exchanged."""

    outputs: tuple[Tensor, ...]
    """Per block: (rows, tokens, d), the module's output."""
    exchanged: tuple[Tensor, ...]
    """Per block: (rows, tokens, d), the block's output when, at that token, its module's output is
    replaced by that of the first row, and nothing else is changed."""


@torch.no_grad()
def contributions(
    model: PreTrainedModel, ids: Tensor, modules: Sequence[nn.Module], changes: Changes
) -> Contributions:
    """Run `ids` (rows, tokens) once and return the contributions of `modules`, one per block.

    Each block runs twice on the same input, the second time with the first row's output of its
    module in all rows. After attention, a block treats tokens independently, as does a norm behind
    the module where a family has one; so one run gives the result of the exchange at each token.
    """
    family, exchanging = family_of(model), False
    outputs: list[Tensor] = []
    exchanged: list[Tensor] = []

    def exchange(state: Tensor) -> Tensor:
        if exchanging:
            return outputs[-1][:1].expand_as(state).clone()
        outputs.append(state)
        return state.clone()  # a block may add to it in place

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
    with steered({**changes, **dict.fromkeys(modules, exchange)}, len(ids)), replaced(forwards):
        record(model, ids, sites)
    assert len(outputs) == len(exchanged) == len(blocks), (len(outputs), len(exchanged))
    return Contributions(tuple(outputs), tuple(exchanged))
