"""Plain reference implementation of causal tracing: one cell at a time, full forward passes.

A batch of one clean row and noisy copies of it goes through the whole model; a hook copies the
clean row's output of a module, at one token, to the noisy rows (arXiv 2202.05262, section 2.1).
For severed traces the noisy rows' own outputs are recorded first and put back in a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.models.families import family_of
from plain import state_of, with_state

Change = Callable[[Tensor], None]


def module_of(model: PreTrainedModel, kind: str, block: int) -> nn.Module:
    """Return the module whose output is this kind of state."""
    family = family_of(model)
    if kind == "hidden":
        return family.block(model, block)
    if kind == "mlp":
        return family.mlp(model, block)
    return family.attention(model, block)


@contextmanager
def changed(changes: Sequence[tuple[nn.Module, Change]], rows: int) -> Iterator[None]:
    """Apply each change in place to its module's output."""
    with ExitStack() as stack:
        for module, change in changes:

            def hook(_: nn.Module, args: Any, output: Any, change: Change = change) -> Any:
                state = state_of(output, rows).clone()
                change(state)
                return with_state(output, state)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


def noisy(
    model: PreTrainedModel, subject: tuple[int, int], noise: Tensor, replace: bool = False
) -> tuple[nn.Module, Change]:
    """Return the change that corrupts the subject in all rows but the first."""

    def corrupt(state: Tensor) -> None:
        kept = 0 if replace else state[1:, subject[0] : subject[1]]
        state[1:, subject[0] : subject[1]] = (kept + noise).to(state.dtype)

    return model.get_submodule(family_of(model).embedding), corrupt


def restored(
    model: PreTrainedModel, kind: str, blocks: Sequence[int], token: int
) -> list[tuple[nn.Module, Change]]:
    """Return the changes that copy the clean row's states to the noisy rows."""

    def copy(state: Tensor) -> None:
        state[1:, token] = state[0, token]

    return [(module_of(model, kind, block), copy) for block in blocks]


def window(block: int, width: int, count: int) -> range:
    """Return the window of blocks around a block."""
    return range(max(0, block - width // 2), min(count, block - (-width // 2)))


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    ids: Sequence[int],
    targets: Sequence[int],
    samples: int,
    changes: Sequence[tuple[nn.Module, Change]],
) -> Tensor:
    """Return the probability of the targets at the end of each row: (1 + samples,)."""
    rows = torch.tensor([list(ids)] * (1 + samples))
    with changed(changes, len(rows)):
        said = model(input_ids=rows, use_cache=False).logits.softmax(-1)
    places = range(len(ids) - len(targets), len(ids))
    return torch.stack([said[:, i, t] for i, t in zip(places, targets, strict=True)]).prod(0)


def cell(
    model: PreTrainedModel,
    ids: Sequence[int],
    targets: Sequence[int],
    corrupt: tuple[nn.Module, Change],
    samples: int,
    kind: str,
    token: int,
    block: int,
    width: int,
) -> Tensor:
    """Return the noisy rows' probability with one cell restored: (samples,)."""
    count = family_of(model).block_count(model)
    if not kind.startswith("frozen"):
        blocks = [block] if kind == "hidden" else window(block, width, count)
        changes = [corrupt, *restored(model, kind, blocks, token)]
        return answers(model, ids, targets, samples, changes)[1:]
    severed = [
        module_of(model, kind.removeprefix("frozen-"), later) for later in range(block + 1, count)
    ]
    held: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module) -> Change:
        return lambda state: held.update({module: state[:, token].clone()})

    def hold(module: nn.Module) -> Change:
        return lambda state: state.__setitem__((slice(None), token), held[module])

    recording = [(module, keep(module)) for module in severed]
    answers(model, ids, targets, samples, [corrupt, *recording])
    holding = [(module, hold(module)) for module in severed]
    changes = [corrupt, *restored(model, "hidden", [block], token), *holding]
    return answers(model, ids, targets, samples, changes)[1:]
