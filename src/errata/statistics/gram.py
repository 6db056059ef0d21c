"""Sums of k kᵀ, of which only the lower triangle is computed.

K Kᵀ is symmetric, so its rows are computed in panels, each only up to the diagonal:

    rows a:b of the sum += K[a:b] · K[:b]ᵀ          (b - a, tokens) x (tokens, b)

With p panels that takes (p + 1) / 2p of the multiplications of the full matrix. Products are
float32 per batch, sums float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANELS = 16
"""Most panels (0.53 of the work); thinner ones would slow the matrix multiplication down."""
PANEL_WIDTH = 192
"""Smallest panel width, for the same reason."""


def panel_edges(width: int, panels: int | None = None) -> list[tuple[int, int]]:
    """Return the (start, stop) rows of each panel; by default as many panels as are worthwhile."""
    count = max(1, min(PANELS, width // PANEL_WIDTH)) if panels is None else panels
    step = -(-width // count)
    return [(start, min(start + step, width)) for start in range(0, width, step)]


def gram_flops(width: int, tokens: int, panels: int | None = None) -> int:
    """Return the FLOPs of a sum over `tokens` keys."""
    return sum(2 * tokens * (stop - start) * stop for start, stop in panel_edges(width, panels))


def gram_bytes(width: int, itemsize: int = 8, panels: int | None = None) -> int:
    """Return the bytes of the panels of one sum."""
    return sum(itemsize * (stop - start) * stop for start, stop in panel_edges(width, panels))


class Gram:
    """The sum of k kᵀ over keys of one width, stored as panels of rows up to the diagonal."""

    def __init__(self, width: int, device: torch.device, panels: int | None = None) -> None:
        self.width = width
        self.edges = panel_edges(width, panels)
        self.sums = [
            torch.zeros(stop - start, stop, dtype=torch.float64, device=device)
            for start, stop in self.edges
        ]

    def add(self, keys: Tensor) -> None:
        """Add keys (tokens, width) of any dtype; products are computed in float32."""
        keys = keys.float()
        largest = max((stop - start) * stop for start, stop in self.edges)
        buffer = torch.empty(largest, dtype=torch.float32, device=keys.device)
        for (start, stop), total in zip(self.edges, self.sums, strict=True):
            product = buffer[: (stop - start) * stop].view(stop - start, stop)
            torch.mm(keys[:, start:stop].T, keys[:, :stop], out=product)
            total.add_(product.to(total.device))

    def copies(self) -> list[Tensor]:
        """Return copies of the panels, float32."""
        return [total.float() for total in self.sums]

    def mean(self, count: int) -> Tensor:
        """Return the sum divided by `count`: (width, width), float32, symmetric to the bit."""
        return whole(self.edges, [(total / count).float() for total in self.sums])


def whole(edges: Sequence[tuple[int, int]], panels: Sequence[Tensor]) -> Tensor:
    """Return the symmetric matrix whose lower triangle is in these panels."""
    width = edges[-1][1]
    matrix = torch.zeros(width, width, dtype=panels[0].dtype, device=panels[0].device)
    for (start, stop), panel in zip(edges, panels, strict=True):
        matrix[start:stop, :stop] = panel
    lower = matrix.tril_()
    return lower + lower.tril(-1).T
