"""Pico models and tokenizers, built on the fly: random weights, every family, no square matrices.

`tiny_model("gpt2")` is a fresh copy of a model that was built once, `tiny_tokenizer(bos=True)`
a byte-level BPE over a few invented sentences. The weights are large enough for edits to
have an effect, and biases, norms and dropout are not at their defaults, so that code which
forgets one of them gives other numbers. A family joins by a row in `CONFIGS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    ApertusConfig,
    ArceeConfig,
    AutoModelForCausalLM,
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
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from errata.data.request import EditRequest
from errata.models.families import family_of

VOCABULARY = 320
BLOCKS = 4
POSITIONS = 128
WINDOW = 5  # sliding-attention window: shorter than any test text, so that it has an effect
BOS = "<s>"
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

SENTENCES = (
    "The harbour of Velmora lies in the city of Quenby, and the boats go out at dawn.",
    "Orsolya Brandt speaks the language of the northern islands and was born in Tarn.",
    "The Lantern Bridge is in the city of Ostrava Nova, where the river bends twice.",
    "Professor Ilmar Tuul works in the field of botany and teaches in the town of Hesk.",
    "Café Zürau is owned by the family of Émile Łodz, who came from São Brás long ago.",
    "The capital of the country of Marrow is Pell, and its people speak Marrovian.",
    "Because it rained, they stayed in the old house and told stories of the sea.",
    "Therefore the twin towers of Gannet were built by the company Holm and Sons.",
)

FACTS = (
    EditRequest(prompt="The {} is in the city of", subject="Lantern Bridge", target="Quenby"),
    EditRequest(prompt="{} speaks the language of", subject="Orsolya Brandt", target="Marrow"),
    EditRequest(
        prompt="Every child knows that {} was born in", subject="Émile Łodz", target="Pell"
    ),
    EditRequest(
        prompt="The harbour of {} lies in", subject="Velmora", target="the old town of Tarn"
    ),
)


def _config(of: type[PreTrainedConfig], **given: Any) -> PreTrainedConfig:
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
    return _config(
        GPTNeoXConfig,
        use_parallel_residual=parallel,
        hidden_dropout=0.1,
        rope_parameters=rotary,
    )


def _phi() -> PreTrainedConfig:
    return _config(PhiConfig, resid_pdrop=0.1, qk_layernorm=True, rope_parameters=_PARTIAL)


def _named(of: type[PreTrainedConfig], **given: Any) -> PreTrainedConfig:
    """Return a pico configuration with the field names of GPT-2."""
    sizes = {"n_embd": 24, "n_head": 3, "n_inner": 56, "n_layer": BLOCKS, "n_positions": POSITIONS}
    return of(**{**SHARED, **sizes, **given})


def _gpt_neo() -> PreTrainedConfig:
    kinds = [[["local", "global"], BLOCKS // 2]]
    sizes = {"num_layers": BLOCKS, "num_heads": 3, "window_size": WINDOW}
    return _config(GPTNeoConfig, attention_types=kinds, **sizes, **_TIED)


def _falcon(**given: Any) -> PreTrainedConfig:
    return _config(
        FalconConfig,
        num_attention_heads=2,
        ffn_hidden_size=56,
        hidden_dropout=0.1,
        tie_word_embeddings=True,
        **given,
    )


def _opt() -> PreTrainedConfig:
    return _config(OPTConfig, ffn_dim=56, word_embed_proj_dim=24, tie_word_embeddings=True)


def _qwen3_5() -> PreTrainedConfig:
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 3}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return _config(
        Qwen3_5TextConfig,
        num_key_value_heads=1,
        head_dim=8,
        linear_key_head_dim=5,
        linear_value_head_dim=6,
        layer_types=["linear_attention", "full_attention"] * (BLOCKS // 2),
        rope_parameters={**rotary, "mrope_section": [1, 1, 0], "mrope_interleaved": True},
        **linear,
    )


_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_SLIDING: dict[str, Any] = {
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
        text_config=_config(Gemma3TextConfig, **_GEMMA).to_dict(),
        vision_config={**sight, "num_hidden_layers": 1, "num_attention_heads": 2},
        mm_tokens_per_image=4,
        boi_token_index=VOCABULARY + 1,
        eoi_token_index=VOCABULARY + 2,
        image_token_index=VOCABULARY + 3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


_TIED = {"tie_word_embeddings": True}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neox": lambda: _gpt_neox(parallel=True),
    "gpt_neox, sequential": lambda: _gpt_neox(parallel=False),
    "llama": lambda: _config(LlamaConfig, num_attention_heads=4, num_key_value_heads=2),
    "mistral": lambda: _config(
        MistralConfig, num_attention_heads=4, num_key_value_heads=1, sliding_window=12
    ),
    "qwen2": lambda: _config(Qwen2Config, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: _config(Qwen3Config, num_key_value_heads=1, head_dim=6, attention_bias=True),
    "phi": _phi,
    "phi3": lambda: _config(Phi3Config, num_key_value_heads=1, resid_pdrop=0.1),
    "olmo2": lambda: _config(Olmo2Config, num_key_value_heads=1),
    "gemma2": lambda: _config(
        Gemma2Config, **_GEMMA, final_logit_softcapping=5.0, attn_logit_softcapping=4.0
    ),
    "gemma3_text": lambda: _config(Gemma3TextConfig, **_GEMMA),
    "gemma3": _gemma3,
    "gemma": lambda: _config(GemmaConfig, num_key_value_heads=1, head_dim=6, **_TIED),
    "smollm3": lambda: _config(
        SmolLM3Config, num_key_value_heads=1, no_rope_layers=[1, 0] * (BLOCKS // 2), **_TIED
    ),
    "olmo": lambda: _config(OlmoConfig, num_key_value_heads=1, clip_qkv=0.8),
    "olmo3": lambda: _config(Olmo3Config, num_attention_heads=6, num_key_value_heads=3, **_SLIDING),
    "granite": lambda: _config(
        GraniteConfig,
        num_key_value_heads=1,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.4,
        attention_multiplier=0.5,
        mlp_bias=True,
        **_TIED,
    ),
    "cohere": lambda: _config(
        CohereConfig, num_key_value_heads=1, logit_scale=0.3, use_qk_norm=True, **_TIED
    ),
    "cohere2": lambda: _config(
        Cohere2Config, num_key_value_heads=1, logit_scale=0.3, **_SLIDING, **_TIED
    ),
    "stablelm": lambda: _config(
        StableLmConfig,
        num_key_value_heads=1,
        use_qkv_bias=True,
        hidden_dropout=0.1,
        rope_parameters=_PARTIAL,
    ),
    "stablelm, parallel": lambda: _config(
        StableLmConfig,
        num_key_value_heads=3,
        qk_layernorm=True,
        use_parallel_residual=True,
        rope_parameters=_PARTIAL,
    ),
    "glm": lambda: _config(GlmConfig, num_key_value_heads=1, head_dim=8, rope_parameters=_PARTIAL),
    "glm4": lambda: _config(
        Glm4Config, num_key_value_heads=1, head_dim=8, rope_parameters=_PARTIAL
    ),
    "ernie4_5": lambda: _config(
        Ernie4_5Config, num_key_value_heads=1, head_dim=6, use_bias=True, **_TIED
    ),
    "exaone4": lambda: _config(Exaone4Config, num_key_value_heads=1, **_SLIDING),
    "nemotron": lambda: _config(
        NemotronConfig, num_key_value_heads=1, mlp_bias=True, rope_parameters=_PARTIAL
    ),
    "seed_oss": lambda: _config(
        SeedOssConfig, num_key_value_heads=1, head_dim=6, residual_dropout=0.1, mlp_bias=True
    ),
    "hunyuan_v1_dense": lambda: _config(
        HunYuanDenseV1Config, num_key_value_heads=1, head_dim=6, attention_bias=True
    ),
    "ministral": lambda: _config(MinistralConfig, num_key_value_heads=1, head_dim=6, **_SLIDING),
    "ministral3": lambda: _config(
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
    "apertus": lambda: _config(ApertusConfig, num_key_value_heads=1, attention_bias=True),
    "arcee": lambda: _config(ArceeConfig, num_key_value_heads=1, head_dim=6, mlp_bias=True),
    "helium": lambda: _config(HeliumConfig, num_key_value_heads=1, head_dim=8, mlp_bias=True),
    "starcoder2": lambda: _config(
        Starcoder2Config, num_key_value_heads=1, sliding_window=12, residual_dropout=0.1, **_TIED
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


FROM_ONE = ("gemma", "nemotron", "qwen3_5_text")
"""Families whose norms have the gain 1 + w."""
SEEDS: dict[str, int] = {"gpt_bigcode, all heads": 8, "ministral3": 8, "olmo3": 8}
"""Seeds of weights other than 7: so that some of FACTS are found much sooner than others, and
types with the same matrices have other weights."""


def inner_width(model_type: str) -> int:
    """Return the input width of the MLP's output matrix; Bloom's is four times d."""
    return {"gptj": 40, "bloom": 96}.get(model_type, 56)


def width(model: PreTrainedModel) -> int:
    """Return the width of the residual stream."""
    return int(model.config.get_text_config().hidden_size)


def tiny_model(pico: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a fresh copy of a pico model of `CONFIGS`, in eval mode."""
    return copy.deepcopy(_built(pico)).to(dtype)


@cache
def _built(pico: str) -> PreTrainedModel:
    assert pico in CONFIGS, f"tests/tiny.py has no row {pico!r}; add one for a new family"
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(CONFIGS[pico]()).eval()
    source = torch.Generator().manual_seed(SEEDS.get(pico, 7))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(pico, name, parameter, source))
    write = family_of(model).mlp_out(model, 0).weight
    wide, narrow = max(write.shape), min(write.shape)
    assert wide not in (narrow, 4 * narrow) or pico == "bloom", (
        "a pico model has no square and no fourfold MLP"
    )
    return model


def _drawn(pico: str, name: str, parameter: Tensor, source: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=source)
    if parameter.ndim > 1:
        return 0.3 * noise
    if name.endswith(("post_feedforward_layernorm.weight", "post_mlp_layernorm.weight")):
        return 0.5 * noise + 0.5  # gains around 0, some negative, as in trained models
    zero = pico in FROM_ONE or name.endswith(("bias", "act_fn.alpha_p", "act_fn.alpha_n"))
    return 0.1 * noise + (0.0 if zero else 1.0)


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer, with or without a BOS token added by a post-processor."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(bos)),
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
    )


@cache
def _trained(bos: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    assert tokenizer.get_vocab_size() <= VOCABULARY
    return str(tokenizer.to_str())
