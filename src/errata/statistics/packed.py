"""Packed second moments: the Cholesky factor in half precision, a quarter of the space.

    C ≈ (D L)(D L)ᵀ,  D diagonal in float32, L lower triangular in float16

L is the Cholesky factor of C scaled to a unit diagonal, so every row of L has norm 1 and fits the
range of float16. However L is rounded, the product is positive semi-definite. Elements change by
2⁻¹¹ of their size, and C and C⁻¹ k by about that much, unless a few directions outweigh all others
by more than float16 resolves (10⁴ in the size of keys; 10² is usual and tested).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LOWER, SCALE = "factor", "scale"
PACKED = frozenset((LOWER, SCALE))
"""Names of the tensors of a packed file."""


def pack(factor: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a packed file, for the lower Cholesky factor of C (d, d).

    `factor` holds the d (d + 1) / 2 elements of L by rows, `scale` the d elements of D.
    """
    scale = factor.norm(dim=1)
    rows, columns = torch.tril_indices(*factor.shape)
    lower = (factor / scale[:, None])[rows, columns]
    return {LOWER: lower.half().cpu(), SCALE: scale.float().cpu()}


def unpack(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return C (d, d), float32; raises `ValueError` unless the tensors are those of `pack`."""
    lower, scale = tensors[LOWER], tensors[SCALE]
    size = len(scale)
    if lower.shape != (size * (size + 1) // 2,) or scale.ndim != 1:
        raise ValueError("its factor and scale do not belong together")
    if lower.dtype != torch.float16 or scale.dtype != torch.float32:
        raise ValueError("its factor and scale have other types than float16 and float32")
    factor = torch.zeros(size, size, dtype=torch.float64)
    rows, columns = torch.tril_indices(size, size)
    factor[rows, columns] = lower.double()
    factor *= scale.double()[:, None]
    return (factor @ factor.T).float()
