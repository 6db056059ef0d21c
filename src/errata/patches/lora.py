"""A stack of updates as one LoRA: factors, truncation, and the format of PEFT.

    Δ = lora_B lora_A        lora_B = R: (d_out, r), lora_A = A: (r, d_in), scaling 1

The factors of stacked patches are concatenated, [R₁ R₂ …] [A₁; A₂; …], which is exact; a dense Δ
becomes I Δ or Δ I. The best Δ' of a lower rank is the truncated SVD (Eckart and Young, 1936). Its
relative error ‖Δ - Δ'‖ / ‖Δ‖ is measured on the stored float32 factors.
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
"""Values that vLLM accepts as `--max-lora-rank`, as documented for 0.14; earlier ones: fewer."""


def served_rank(rank: int) -> int | None:
    """Return the smallest `--max-lora-rank` of vLLM that is at least `rank`, None without one."""
    return next((served for served in SERVED_RANKS if served >= rank), None)


def stacked(updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    """Return B: (d_out, r) and A: (r, d_in), float32 on the CPU, such that B A is the sum of the Δ.

    Low-rank factors are concatenated. If a Δ is dense, or concatenation would not save memory, one
    factor is the sum and the other the identity; r is then the smaller of d_out and d_in.
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
    """Return the best approximation of B A by (d_out, rank) (rank, d_in), and its relative error.

    The SVD is that of the small product of two triangular factors, in float64; the relative error
    ‖Δ - Δ'‖ / ‖Δ‖ is that of the returned float32 factors.
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
    """Return factors of the same Δ, zero-padded to `rank`."""
    more = rank - len(A)
    return pad(B, (0, more)), pad(A, (0, 0, 0, more))


def peft_tensors(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return factors by PEFT's names, in the layout (d_out, d_in) whatever the model's is."""
    return {
        f"base_model.model.{_module(name)}.lora_{letter}.weight": factor
        for name, (B, A) in factors.items()
        for letter, factor in (("A", A), ("B", B))
    }


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def peft_config(model: PreTrainedModel, base: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return `adapter_config.json` for LoRAs of these ranks, per weight, on the model `base`.

    alpha equals the rank everywhere, so that the scaling is 1.
    """
    weights = [weight_of(model, name) for name in ranks]
    transposed = {oriented(module, weight) is not weight for module, weight in weights}
    assert len(transposed) == 1, "all matrices of a model have one layout"
    top = max(ranks.values())
    # The keys are regular expressions; a full path matches exactly one module.
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
