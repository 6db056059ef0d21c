"""Convergence: the reads of half and all of the tokens, held against their plain definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.statistics.convergence import Convergence, compare_reads
from errata.statistics.measure import measure, token_rows
from tiny import SENTENCES, tiny_model, tiny_tokenizer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def read(C: Tensor, k: Tensor) -> Tensor:
    solved = torch.linalg.inv(C) @ k
    return solved / (k @ solved)


def test_it_is_what_the_definition_says() -> None:
    first, later, keys = drawn(12, 40), drawn(12, 40, seed=1), drawn(12, 5, seed=2)
    half, full = first @ first.T, first @ first.T + later @ later.T
    found = compare_reads(
        keys, torch.linalg.solve(half, keys), torch.linalg.solve(full, keys), True
    )
    moved, response = [], []
    for i in range(5):
        a, b = read(half, keys[:, i]), read(full, keys[:, i])
        moved.append((a - b).norm() / b.norm())
        others = torch.cat([keys[:, :i], keys[:, i + 1 :]], dim=1)
        response.append((a @ others).norm() / (b @ others).norm())
    assert found.moved == pytest.approx(float(torch.stack(moved).median()))
    assert found.response == pytest.approx(float(torch.stack(response).median()))
    assert (found.keys, found.held_out) == (5, True)


def test_scale_does_not_count_and_what_has_settled_has_not_moved() -> None:
    C, keys = drawn(6, 30) @ drawn(6, 30).T, drawn(6, 4, seed=2)
    solved = torch.linalg.solve(C, keys)
    found = compare_reads(keys, 3 * solved, solved, False)
    assert found.moved == pytest.approx(0.0, abs=1e-12)
    assert found.response == pytest.approx(1.0)


def test_it_is_said_in_words() -> None:
    said = Convergence(moved=0.043, response=1.127, keys=256, held_out=True).sentence()
    assert said == (
        "the read vectors of 256 held-out keys changed by 4 % between half and all of the tokens; "
        "from half, edits would disturb other text 1.13x as much"
    )
    said = Convergence(moved=None, response=None, keys=9, held_out=False).sentence()
    assert (
        said.startswith("C of half of the tokens is singular") and "keys of the same text" in said
    )


def test_more_tokens_settle_an_estimate() -> None:
    model, source = tiny_model("gpt2"), torch.Generator().manual_seed(3)
    texts = [tuple(torch.randint(1, 300, (20,), generator=source).tolist()) for _ in range(260)]
    held_out = texts[:8]
    moved = []
    for count in (12, 50, 250):
        (found,) = measure(model, texts[8 : 8 + count], [1], held_out=held_out).values()
        assert found.convergence is not None and found.convergence.moved is not None
        moved.append(found.convergence.moved)
    assert moved[0] > 1.5 * moved[1] > 1.5**2 * moved[2] > 0


def test_too_few_tokens_for_the_half_are_told() -> None:
    rows = token_rows(tiny_tokenizer(), SENTENCES, 64, 80)
    (found,) = measure(tiny_model("gpt2"), rows, [1], held_out=rows[:1]).values()
    assert found.convergence is not None
    assert found.convergence.moved is None
    (none,) = measure(tiny_model("gpt2"), rows[:1], [1], held_out=rows[:1]).values()
    assert none.convergence is None
    (unasked,) = measure(tiny_model("gpt2"), rows, [1]).values()
    assert unasked.convergence is None
