"""A stack of updates as one LoRA: factors, their truncation, and how PEFT writes them.

    Δ = lora_B lora_A        lora_B = R: (d_out, r), lora_A = A: (r, d_in), scaling 1

Stacked patches are their factors side by side, [R₁ R₂ …] [A₁; A₂; …], so nothing is lost; a Δ
that is kept dense is I Δ or Δ I. The best Δ' of a lower rank is the truncated SVD (Eckart and
Young), its loss ‖Δ - Δ'‖ / ‖Δ‖ measured on the factors as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from errata.models.families import oriented, weight_of
from errata.patches.update import Update

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`, by its documentation of 0.14; older ones took less."""


def served_rank(rank: int) -> int | None:
    """Return the smallest `--max-lora-rank` of vLLM that takes a rank, None where none does."""
    return next((served for served in SERVED_RANKS if served >= rank), None)


def stacked(updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    """Return B: (d_out, r) and A: (r, d_in), float32 on the CPU, with B A the sum of the Δ.

    Factors stand side by side as they are; where that is no saving, or a Δ is dense, the sum
    stands beside the identity, and r is the smaller of d_out and d_in.
    """
    factors = [(each.R.cpu(), each.A.cpu()) for each in updates if each.R is not None]
    d_out, d_in = updates[0].shape
    if len(factors) == len(updates) and sum(len(A) for _, A in factors) <= min(d_out, d_in):
        return torch.cat([R for R, _ in factors], dim=1), torch.cat([A for _, A in factors])
    delta = torch.zeros(d_out, d_in, dtype=torch.float64)
    for update in updates:
        delta += update.delta().cpu()
    unit = torch.eye(min(d_out, d_in))
    return (unit, delta.float()) if d_out <= d_in else (delta.float(), unit)


def truncated(B: Tensor, A: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """Return the factors (d_out, rank), (rank, d_in) nearest to B A, and ‖Δ - Δ'‖ / ‖Δ‖.

    The singular values are those of the small product of two triangular factors, in float64;
    the loss is that of the float32 factors as returned.
    """
    B, A = B.double(), A.double()
    left, upper = torch.linalg.qr(B)  # (d_out, r), (r, r)
    right, lower = torch.linalg.qr(A.T)  # (d_in, r), (r, r)
    U, S, Vh = torch.linalg.svd(upper @ lower.T)
    root = S[:rank].sqrt()
    less_B = (left @ U[:, :rank] * root).float()
    less_A = (root[:, None] * (Vh[:rank] @ right.T)).float()
    delta = B @ A
    size = float(delta.norm())
    missing = float((delta - less_B.double() @ less_A.double()).norm())
    return (less_B, less_A), missing / size if size else 0.0


def padded(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the same Δ in factors of this rank, with zeros added."""
    more = rank - len(A)
    return pad(B, (0, more)), pad(A, (0, 0, 0, more))


def peft_tensors(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Name factors as PEFT does, in the layout (d_out, d_in), also where a model transposes it."""
    return {
        f"base_model.model.{_module(name)}.lora_{letter}.weight": factor
        for name, (B, A) in factors.items()
        for letter, factor in (("A", A), ("B", B))
    }


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def peft_config(model: PreTrainedModel, base: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return `adapter_config.json` for LoRAs of these ranks, per weight, on the model `base`.

    alpha is the rank everywhere, so that the scaling is 1.
    """
    weights = [weight_of(model, name) for name in ranks]
    transposed = {oriented(module, weight) is not weight for module, weight in weights}
    assert len(transposed) == 1, "one model holds its matrices in one way"
    top = max(ranks.values())
    # Keys are regular expressions; a full path matches one module and no other.
    lower = {re.escape(_module(name)): rank for name, rank in ranks.items() if rank != top}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": top,
        "lora_alpha": top,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "target_modules": [_module(name) for name in ranks],
        "fan_in_fan_out": transposed.pop(),
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
