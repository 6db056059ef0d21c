"""Counts the multiplications and additions of matrix products, fused attention included.

PyTorch's formulas of fused attention refuse grouped-query attention in some versions ("shapes are
incompatible"), and there is none for the CPU's kernel. Ours count the products of every query head,
masked or not, as those of attention written out in products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]
KERNELS = ("cudnn_attention", "efficient_attention", "flash_attention", "flash_attention_for_cpu")


def flops_of(work: Callable[[], Any]) -> float:
    """Return how many multiplications and additions of matrix products `work` makes."""
    formulas: dict[Any, Callable[..., int]] = {}
    for kernel in KERNELS:
        formulas[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")] = attention
        backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")
        formulas[backward] = attention_backward
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, torch.backends.mkldnn.flags(enabled=False):  # oneDNN's products are not counted
        work()
    return float(counter.get_total_flops())


def attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    """Return the FLOPs of scores and values; k and v (n, heads, s, d) may have fewer heads."""
    return _pairs(query, key) * (query[-1] + value[-1])


def attention_backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object
) -> int:
    """Return the FLOPs of scores, once more, and of the gradients of scores, q, k and v."""
    return _pairs(query, key) * (3 * query[-1] + 2 * value[-1])


def _pairs(query: Shape, key: Shape) -> int:
    """Return twice the pairs of query and key: what one dimension of theirs costs."""
    batch, heads, length, _ = query
    return 2 * batch * heads * length * key[-2]
