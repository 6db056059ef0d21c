"""Half of K Kᵀ is enough: the sum is right, symmetric to the bit, and only the half is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from errata.statistics.gram import PANEL_WIDTH, PANELS, Gram, gram_bytes, gram_flops, panel_edges
from laws.bench import closeness

CPU = torch.device("cpu")


def keys(tokens: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "panels"), [(7, 1), (7, 2), (7, 7), (56, 3), (400, None)])
def test_the_sum_is_the_whole_one(width: int, panels: int | None) -> None:
    gram = Gram(width, CPU, panels)
    for seed in range(3):
        gram.add(keys(50, width, seed))
    held = torch.cat([keys(50, width, seed) for seed in range(3)]).double()
    found = gram.mean(150)
    assert found.dtype == torch.float32
    assert closeness(found, held.T @ held / 150) < 1e-6
    assert torch.equal(found, found.T)


def test_batches_are_added_in_float64() -> None:
    gram, big, small = Gram(3, CPU), torch.full((1, 3), 1e4), torch.full((1, 3), 1e-2)
    gram.add(big)
    for _ in range(100):
        gram.add(small)
    assert float(gram.sums[0][0, 0]) == pytest.approx(1e8 + 1e-2, rel=1e-12)


def test_panels_cover_every_row_once() -> None:
    for width in (1, 56, 191, 192, 768, 3072, 6400, 14336):
        edges = panel_edges(width)
        assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
        assert edges[-1][1] == width
        assert len(edges) <= PANELS and (len(edges) == 1 or edges[0][1] >= PANEL_WIDTH)


def multiplied(monkeypatch: pytest.MonkeyPatch, width: int, tokens: int) -> int:
    """Count the multiplications and additions of one batch by the shapes that are multiplied."""
    real, count = torch.mm, 0

    def mm(left: Tensor, right: Tensor, **options: Any) -> Tensor:
        nonlocal count
        count += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return real(left, right, **options)

    monkeypatch.setattr(torch, "mm", mm)
    Gram(width, CPU).add(keys(tokens, width))
    return count


def test_only_half_of_the_products_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    count = multiplied(monkeypatch, 3072, 3)
    assert count == gram_flops(3072, 3)
    assert count <= 0.54 * 2 * 3 * 3072**2


def test_the_sums_take_what_is_said() -> None:
    for width, panels in ((56, None), (400, None), (90, 4)):
        held = Gram(width, CPU, panels).sums
        assert sum(s.numel() * s.itemsize for s in held) == gram_bytes(width, panels=panels)
    assert gram_bytes(3072) < 0.54 * 8 * 3072**2
