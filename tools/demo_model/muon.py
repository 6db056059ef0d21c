"""Muon in float32, all matrices of one shape at once.

Momentum whose update is replaced by the nearest orthogonal matrix, by five Newton-Schulz
steps (https://kellerjordan.github.io/posts/muon/), scaled so that its size is AdamW's
(arXiv 2502.16982). `torch.optim.Muon` computes the same in bfloat16, matrix by matrix;
on a processor without bfloat16 arithmetic that takes five times as long as the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return nearly orthogonal matrices with the same singular vectors: (n, rows, columns).

    Rows must not outnumber columns, so that the smaller Gram matrix is the one computed.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for 2-D parameters."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    direction = self._direction(p, p.grad, group["momentum"])
                    wide = (min(p.shape), max(p.shape))
                    by_shape.setdefault(wide, []).append((p, direction))
            for pairs in by_shape.values():
                self._step_together(pairs, group["lr"], group["weight_decay"])

    def _direction(self, p: torch.Tensor, gradient: torch.Tensor, momentum: float) -> torch.Tensor:
        buffer: torch.Tensor = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(buffer, momentum)
        return direction.mT if p.shape[0] > p.shape[1] else direction

    def _step_together(
        self, pairs: list[tuple[torch.Tensor, torch.Tensor]], lr: float, weight_decay: float
    ) -> None:
        updates = orthogonalized(torch.stack([direction for _, direction in pairs]))
        for (p, _), update in zip(pairs, updates, strict=True):
            p.mul_(1 - lr * weight_decay)
            size = 0.2 * max(p.shape) ** 0.5
            p.add_(update.mT if p.shape[0] > p.shape[1] else update, alpha=-lr * size)
