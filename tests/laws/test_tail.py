"""A suffix run equals the full forward pass: the same logits, for any prefix, block and cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.models.suffix_run import SuffixRun
from errata.models.tokens import TokenRow
from laws.bench import closeness, over_all, over_families
from plain import cut_after, place_of, state_of
from tiny import BLOCKS, tiny_model, width

SUFFIX = 4
LENGTHS = (5, 0, 1, 9)  # tokens before the edited one, per row


def rows_of(lengths: tuple[int, ...], suffix: int = SUFFIX) -> list[TokenRow]:
    source = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 300, (n + suffix,), generator=source).tolist() for n in lengths]
    return [TokenRow(tuple(line), n) for line, n in zip(ids, lengths, strict=True)]


def deltas_of(model: PreTrainedModel, rows: list[TokenRow]) -> Tensor:
    source = torch.Generator().manual_seed(2)
    wide = width(model)
    return torch.randn(len(rows), wide, generator=source).to(model.dtype)


@torch.no_grad()
def in_full(
    model: PreTrainedModel, rows: list[TokenRow], block: int, deltas: Tensor, last_block: int
) -> list[Tensor]:
    """Run every row alone, δ added at the block's output; return logits from the position on."""
    logits = []
    for row, delta in zip(rows, deltas, strict=True):

        def push(
            _: nn.Module, args: Any, output: Any, row: TokenRow = row, delta: Tensor = delta
        ) -> Any:
            state = state_of(output).clone()
            state[0, row.position] += delta
            return (state, *output[1:]) if isinstance(output, tuple) else state

        handle = place_of(model, block, "block").register_forward_hook(push)
        try:
            with cut_after(model, last_block):
                out = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits
        finally:
            handle.remove()
        logits.append(out[0, row.position :])
    return logits


@torch.no_grad()
def in_part(suffix: SuffixRun, deltas: Tensor, keep: Tensor, last_block: int | None) -> Tensor:
    states = suffix.states.clone()
    states[:, 0] += deltas
    return suffix.run(states, keep, last_block)


def compare(
    model: PreTrainedModel, lengths: tuple[int, ...], block: int, last_block: int | None
) -> float:
    """Return the largest difference between suffix run and full forward, relative to the logits."""
    rows = rows_of(lengths)
    deltas = deltas_of(model, rows)
    keep = torch.zeros(len(rows), SUFFIX, dtype=torch.bool)
    keep[:, -1] = keep[0, 0] = keep[-1, 1] = True
    end = BLOCKS - 1 if last_block is None else last_block
    full = torch.stack(in_full(model, rows, block, deltas, end))[keep]
    part = in_part(SuffixRun.prepare(model, rows, block), deltas, keep, last_block)
    assert part.shape == full.shape
    return float((part - full).abs().max() / full.abs().max())


@over_all
@pytest.mark.parametrize("lengths", [LENGTHS, (0, 0), (3,)], ids=str)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_it_is_the_full_forward(model_type: str, lengths: tuple[int, ...], block: int) -> None:
    assert compare(tiny_model(model_type), lengths, block, None) < 1e-5


@over_all
@pytest.mark.parametrize(("block", "last_block"), [(0, 0), (0, 2), (1, 1), (1, 2), (2, 3), (3, 3)])
def test_it_is_the_full_forward_of_a_model_cut_short(
    model_type: str, block: int, last_block: int
) -> None:
    assert compare(tiny_model(model_type), LENGTHS, block, last_block) < 1e-5


@over_families
def test_it_is_as_exact_as_the_dtype(model_type: str) -> None:
    assert compare(tiny_model(model_type, torch.float64), LENGTHS, 1, None) < 1e-6


@over_all
def test_rows_that_leave_do_not_change_those_that_stay(model_type: str) -> None:
    model, rows = tiny_model(model_type), rows_of(LENGTHS)
    suffix, deltas = SuffixRun.prepare(model, rows, 1), deltas_of(model, rows)
    keep = torch.ones(len(rows), SUFFIX, dtype=torch.bool)
    together = in_part(suffix, deltas, keep, None).view(len(rows), SUFFIX, -1)
    stay = torch.tensor([False, True, False, True])
    part = in_part(suffix.select(stay), deltas[stay], keep[stay], None).view(2, SUFFIX, -1)
    assert closeness(part, together[stay]) < 1e-5
    alone = SuffixRun.prepare(model, [rows[1]], 1)
    assert closeness(in_part(alone, deltas[1:2], keep[1:2], None), together[1]) < 1e-5


@over_all
def test_it_can_be_run_again_and_again(model_type: str) -> None:
    model, rows = tiny_model(model_type), rows_of(LENGTHS)
    suffix, deltas = SuffixRun.prepare(model, rows, 1), deltas_of(model, rows)
    keep = torch.ones(len(rows), SUFFIX, dtype=torch.bool)
    first = in_part(suffix, deltas, keep, None)
    in_part(suffix, 3 * deltas, keep, 2)
    assert torch.equal(in_part(suffix, deltas, keep, None), first)


@over_families
def test_its_gradient_is_that_of_the_full_forward(model_type: str) -> None:
    model, rows = tiny_model(model_type, torch.float64), rows_of((6,))
    suffix, row = SuffixRun.prepare(model, rows, 1), rows[0]
    delta = deltas_of(model, rows).requires_grad_()
    keep = torch.ones(1, SUFFIX, dtype=torch.bool)
    states = torch.cat([suffix.states[:, :1] + delta[:, None], suffix.states[:, 1:]], dim=1)
    (ours,) = torch.autograd.grad(suffix.run(states, keep).logsumexp(-1).sum(), delta)

    def push(_: nn.Module, args: Any, output: Any) -> Any:
        state = state_of(output).index_put(
            (torch.tensor([0]), torch.tensor([row.position])), delta, accumulate=True
        )
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handle = place_of(model, 1, "block").register_forward_hook(push)
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits
    handle.remove()
    (theirs,) = torch.autograd.grad(logits[0, row.position :].logsumexp(-1).sum(), delta)
    assert closeness(ours, theirs) < 1e-6
