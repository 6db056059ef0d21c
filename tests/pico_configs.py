"""Pico configurations of the dense families, with everything special about each turned on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    ApertusConfig,
    ArceeConfig,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    HeliumConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

VOCABULARY = 320
BLOCKS = 4
POSITIONS = 128
WINDOW = 5  # sliding-attention window: shorter than any test text, so that it has an effect
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def config(of: type[PreTrainedConfig], **given: Any) -> PreTrainedConfig:
    """Return a pico configuration with the field names of most families: d = 24, three heads."""
    usual = {
        "hidden_size": 24,
        "intermediate_size": 56,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 3,
        "max_position_embeddings": POSITIONS,
        "attention_dropout": 0.1,
        "tie_word_embeddings": False,
    }
    return of(**{**SHARED, **usual, **given})


def _gpt2() -> PreTrainedConfig:
    sizes = {"n_embd": 24, "n_head": 3, "n_inner": 56, "n_layer": BLOCKS}
    return GPT2Config(n_positions=POSITIONS, **sizes, **SHARED)


def _gptj() -> PreTrainedConfig:
    sizes = {"n_embd": 24, "n_head": 2, "n_inner": 40, "n_layer": BLOCKS, "rotary_dim": 4}
    return GPTJConfig(
        n_positions=POSITIONS, resid_pdrop=0.1, tie_word_embeddings=False, **sizes, **SHARED
    )


def _gpt_neox(parallel: bool) -> PreTrainedConfig:
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return config(
        GPTNeoXConfig,
        use_parallel_residual=parallel,
        hidden_dropout=0.1,
        rope_parameters=rotary,
    )


def _phi() -> PreTrainedConfig:
    return config(PhiConfig, resid_pdrop=0.1, qk_layernorm=True, rope_parameters=PARTIAL)


def _named(of: type[PreTrainedConfig], **given: Any) -> PreTrainedConfig:
    """Return a pico configuration with the field names of GPT-2."""
    sizes = {"n_embd": 24, "n_head": 3, "n_inner": 56, "n_layer": BLOCKS, "n_positions": POSITIONS}
    return of(**{**SHARED, **sizes, **given})


def _gpt_neo() -> PreTrainedConfig:
    kinds = [[["local", "global"], BLOCKS // 2]]
    sizes = {"num_layers": BLOCKS, "num_heads": 3, "window_size": WINDOW}
    return config(GPTNeoConfig, attention_types=kinds, **sizes, **TIED)


def _falcon(**given: Any) -> PreTrainedConfig:
    return config(
        FalconConfig,
        num_attention_heads=2,
        ffn_hidden_size=56,
        hidden_dropout=0.1,
        tie_word_embeddings=True,
        **given,
    )


def _opt() -> PreTrainedConfig:
    return config(OPTConfig, ffn_dim=56, word_embed_proj_dim=24, tie_word_embeddings=True)


def _qwen3_5() -> PreTrainedConfig:
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 3}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return config(
        Qwen3_5TextConfig,
        num_key_value_heads=1,
        head_dim=8,
        linear_key_head_dim=5,
        linear_value_head_dim=6,
        layer_types=["linear_attention", "full_attention"] * (BLOCKS // 2),
        rope_parameters={**rotary, "mrope_section": [1, 1, 0], "mrope_interleaved": True},
        **linear,
    )


PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
SLIDING: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
}
_GEMMA: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 6,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
    "tie_word_embeddings": True,
}


def _gemma3() -> PreTrainedConfig:
    sight = {"hidden_size": 8, "intermediate_size": 12, "image_size": 8, "patch_size": 4}
    return Gemma3Config(
        text_config=config(Gemma3TextConfig, **_GEMMA).to_dict(),
        vision_config={**sight, "num_hidden_layers": 1, "num_attention_heads": 2},
        mm_tokens_per_image=4,
        boi_token_index=VOCABULARY + 1,
        eoi_token_index=VOCABULARY + 2,
        image_token_index=VOCABULARY + 3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


TIED = {"tie_word_embeddings": True}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neox": lambda: _gpt_neox(parallel=True),
    "gpt_neox, sequential": lambda: _gpt_neox(parallel=False),
    "llama": lambda: config(LlamaConfig, num_attention_heads=4, num_key_value_heads=2),
    "mistral": lambda: config(
        MistralConfig, num_attention_heads=4, num_key_value_heads=1, sliding_window=12
    ),
    "qwen2": lambda: config(Qwen2Config, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: config(Qwen3Config, num_key_value_heads=1, head_dim=6, attention_bias=True),
    "phi": _phi,
    "phi3": lambda: config(Phi3Config, num_key_value_heads=1, resid_pdrop=0.1),
    "olmo2": lambda: config(Olmo2Config, num_key_value_heads=1),
    "gemma2": lambda: config(
        Gemma2Config, **_GEMMA, final_logit_softcapping=5.0, attn_logit_softcapping=4.0
    ),
    "gemma3_text": lambda: config(Gemma3TextConfig, **_GEMMA),
    "gemma3": _gemma3,
    "gemma": lambda: config(GemmaConfig, num_key_value_heads=1, head_dim=6, **TIED),
    "smollm3": lambda: config(
        SmolLM3Config, num_key_value_heads=1, no_rope_layers=[1, 0] * (BLOCKS // 2), **TIED
    ),
    "olmo": lambda: config(OlmoConfig, num_key_value_heads=1, clip_qkv=0.8),
    "olmo3": lambda: config(Olmo3Config, num_attention_heads=6, num_key_value_heads=3, **SLIDING),
    "granite": lambda: config(
        GraniteConfig,
        num_key_value_heads=1,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.4,
        attention_multiplier=0.5,
        mlp_bias=True,
        **TIED,
    ),
    "cohere": lambda: config(
        CohereConfig, num_key_value_heads=1, logit_scale=0.3, use_qk_norm=True, **TIED
    ),
    "cohere2": lambda: config(
        Cohere2Config, num_key_value_heads=1, logit_scale=0.3, **SLIDING, **TIED
    ),
    "stablelm": lambda: config(
        StableLmConfig,
        num_key_value_heads=1,
        use_qkv_bias=True,
        hidden_dropout=0.1,
        rope_parameters=PARTIAL,
    ),
    "stablelm, parallel": lambda: config(
        StableLmConfig,
        num_key_value_heads=3,
        qk_layernorm=True,
        use_parallel_residual=True,
        rope_parameters=PARTIAL,
    ),
    "glm": lambda: config(GlmConfig, num_key_value_heads=1, head_dim=8, rope_parameters=PARTIAL),
    "glm4": lambda: config(Glm4Config, num_key_value_heads=1, head_dim=8, rope_parameters=PARTIAL),
    "ernie4_5": lambda: config(
        Ernie4_5Config, num_key_value_heads=1, head_dim=6, use_bias=True, **TIED
    ),
    "exaone4": lambda: config(Exaone4Config, num_key_value_heads=1, **SLIDING),
    "nemotron": lambda: config(
        NemotronConfig, num_key_value_heads=1, mlp_bias=True, rope_parameters=PARTIAL
    ),
    "seed_oss": lambda: config(
        SeedOssConfig, num_key_value_heads=1, head_dim=6, residual_dropout=0.1, mlp_bias=True
    ),
    "hunyuan_v1_dense": lambda: config(
        HunYuanDenseV1Config, num_key_value_heads=1, head_dim=6, attention_bias=True
    ),
    "ministral": lambda: config(MinistralConfig, num_key_value_heads=1, head_dim=6, **SLIDING),
    "ministral3": lambda: config(
        Ministral3Config,
        num_key_value_heads=1,
        head_dim=6,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.3,
        },
    ),
    "apertus": lambda: config(ApertusConfig, num_key_value_heads=1, attention_bias=True),
    "arcee": lambda: config(ArceeConfig, num_key_value_heads=1, head_dim=6, mlp_bias=True),
    "helium": lambda: config(HeliumConfig, num_key_value_heads=1, head_dim=8, mlp_bias=True),
    "starcoder2": lambda: config(
        Starcoder2Config, num_key_value_heads=1, sliding_window=12, residual_dropout=0.1, **TIED
    ),
    "gpt_bigcode": lambda: _named(GPTBigCodeConfig),
    "gpt_bigcode, all heads": lambda: _named(GPTBigCodeConfig, multi_query=False),
    "gpt_neo": _gpt_neo,
    "falcon": _falcon,
    "falcon, alibi": lambda: _falcon(alibi=True, parallel_attn=False, multi_query=False, bias=True),
    "falcon, new architecture": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=1),
    "bloom": lambda: BloomConfig(
        n_layer=BLOCKS, n_head=3, hidden_size=24, hidden_dropout=0.1, **SHARED
    ),
    "opt": _opt,
    "qwen3_5_text": _qwen3_5,
}
"""Pico configurations: one at least for every family in `errata.models.families.FAMILIES`.

A second one of the same family is named `<model_type>, <difference>`."""
