"""Pico configurations of mixtures of experts, which are used but not edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from pico_configs import SLIDING, TIED, WINDOW, config

_ROUTED: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 20}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "n_group": 3,
    "topk_group": 2,
}

EXPERTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: config(
        MixtralConfig, num_key_value_heads=1, num_local_experts=4, sliding_window=WINDOW
    ),
    "qwen2_moe": lambda: config(
        Qwen2MoeConfig,
        num_key_value_heads=1,
        num_experts=4,
        shared_expert_intermediate_size=28,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        **_ROUTED,
        **TIED,
    ),
    "qwen3_moe": lambda: config(
        Qwen3MoeConfig,
        num_key_value_heads=1,
        head_dim=6,
        num_experts=4,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        **_ROUTED,
    ),
    "olmoe": lambda: config(
        OlmoeConfig, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, clip_qkv=0.8
    ),
    "gpt_oss": lambda: config(
        GptOssConfig,
        num_key_value_heads=1,
        head_dim=6,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 8,
        },
        **SLIDING,
    ),
    "deepseek_v2": lambda: config(
        DeepseekV2Config,
        num_key_value_heads=3,
        q_lora_rank=None,
        topk_method="group_limited_greedy",
        **_ROUTED,
        **_LATENT,
    ),
    "deepseek_v3": lambda: config(
        DeepseekV3Config, num_key_value_heads=3, q_lora_rank=8, **_ROUTED, **_LATENT
    ),
}
