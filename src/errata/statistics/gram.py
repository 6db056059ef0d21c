"""Sums of k kᵀ of which only the half that differs is computed.

K Kᵀ is symmetric, so its rows are computed in panels, each as far as the diagonal:

    rows a:b of the sum += K[a:b] · K[:b]ᵀ          (b - a, tokens) x (tokens, b)

With p panels that is (p + 1) / 2p of the multiplications of the whole. Products are float32 per
batch, sums float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANELS = 16
"""Most panels: 0.53 of the whole; more of them are too thin for the matrix multiplication."""
PANEL_WIDTH = 192
"""Least width of a panel, for the same reason."""


def panel_edges(width: int, panels: int | None = None) -> list[tuple[int, int]]:
    """Return where each panel of a width begins and ends; as many as pay off by default."""
    count = max(1, min(PANELS, width // PANEL_WIDTH)) if panels is None else panels
    step = -(-width // count)
    return [(start, min(start + step, width)) for start in range(0, width, step)]


def gram_flops(width: int, tokens: int, panels: int | None = None) -> int:
    """Return how many multiplications and additions a sum over `tokens` keys takes."""
    return sum(2 * tokens * (stop - start) * stop for start, stop in panel_edges(width, panels))


def gram_bytes(width: int, itemsize: int = 8, panels: int | None = None) -> int:
    """Return how many bytes the panels of one sum take."""
    return sum(itemsize * (stop - start) * stop for start, stop in panel_edges(width, panels))


class Gram:
    """The sum of k kᵀ over keys of one width, as panels of rows up to the diagonal."""

    def __init__(self, width: int, device: torch.device, panels: int | None = None) -> None:
        self.width = width
        self.edges = panel_edges(width, panels)
        self.sums = [
            torch.zeros(stop - start, stop, dtype=torch.float64, device=device)
            for start, stop in self.edges
        ]

    def add(self, keys: Tensor) -> None:
        """Add keys (tokens, width) of any dtype; their products are float32."""
        keys = keys.float()
        most = max((stop - start) * stop for start, stop in self.edges)
        room = torch.empty(most, dtype=torch.float32, device=keys.device)
        for (start, stop), total in zip(self.edges, self.sums, strict=True):
            product = room[: (stop - start) * stop].view(stop - start, stop)
            torch.mm(keys[:, start:stop].T, keys[:, :stop], out=product)
            total.add_(product.to(total.device))

    def copies(self) -> list[Tensor]:
        """Return the panels as they are now, in float32."""
        return [total.float() for total in self.sums]

    def mean(self, count: int) -> Tensor:
        """Return the sum over `count`: (width, width), float32, symmetric to the bit."""
        return whole(self.edges, [(total / count).float() for total in self.sums])


def whole(edges: Sequence[tuple[int, int]], panels: Sequence[Tensor]) -> Tensor:
    """Put panels together into the symmetric matrix that they are the lower half of."""
    width = edges[-1][1]
    matrix = torch.zeros(width, width, dtype=panels[0].dtype, device=panels[0].device)
    for (start, stop), panel in zip(edges, panels, strict=True):
        matrix[start:stop, :stop] = panel
    lower = matrix.tril_()
    return lower + lower.tril(-1).T
