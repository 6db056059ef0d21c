"""What Transformers does not read from a GGUF file: settings, rotary scaling, digit splitting.

Its loader takes the defaults of the config class for these, which are the values of one
checkpoint, and ignores the frequency factors of Llama 3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from gguf import GGUFReader

UNREAD: dict[str, dict[str, str]] = {
    "llama": {"attention.key_length": "head_dim"},
    "qwen3": {"attention.key_length": "head_dim"},
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"},
    "phi3": {"attention.sliding_window": "sliding_window"},
}
"""Per architecture: keys that are not read, and the fields of the config that they set."""
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
"""Fields of a config that a tensor of the file decides."""
FREQUENCIES = "rope_freqs.weight"
"""The tensor of frequency factors with which llama.cpp stores Llama 3's rotary scaling."""
LLAMA3_FACTORS = (8.0, 32.0)
"""The published factors of Llama 3.1 and 3.2; see `_llama3_scaling` for the other values."""
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Blocks of the 27B models, which alone scale attention by width / heads, as in llama.cpp."""
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r")
"""Values of `tokenizer.ggml.pre` for GPT-2's splitting after each digit is split off."""


def completed_config(reader: GGUFReader, place: dict[str, str]) -> PreTrainedConfig:
    """Return the config of a GGUF file's model with everything that the file tells about it.

    `place` holds the arguments by which Transformers finds the file.
    """
    config = AutoConfig.from_pretrained(**place, trust_remote_code=False)
    architecture = str(value_of(reader, "general.architecture"))
    for key, field in UNREAD.get(architecture, {}).items():
        if (value := value_of(reader, f"{architecture}.{key}")) is not None:
            setattr(config, field, value)
    names = {tensor.name for tensor in reader.tensors}
    for field, name in BIASES.items():
        if hasattr(config, field):
            setattr(config, field, name in names)
    if config.num_hidden_layers == LARGEST_GEMMA.get(architecture):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if scaling := _scaling(reader, config):
        config.rope_parameters = _scaled(config.rope_parameters, scaling)
    return config


def has_known_scaling(reader: GGUFReader) -> bool:
    """Return whether the rotary positions of a file's model are scaled as the config can say."""
    architecture = value_of(reader, "general.architecture")
    kind = value_of(reader, f"{architecture}.rope.scaling.type")
    factors = {tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")}
    if factors - {FREQUENCIES} or kind not in (None, "none", "linear"):
        return False
    return FREQUENCIES not in factors or _llama3_scaling(reader) is not None


def _scaling(reader: GGUFReader, config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the rotary scaling of a file's model; None where it has none."""
    architecture = value_of(reader, "general.architecture")
    if value_of(reader, f"{architecture}.rope.scaling.type") == "linear":
        factor = value_of(reader, f"{architecture}.rope.scaling.factor")
        return {"rope_type": "linear", "factor": float(factor)}
    return _llama3_scaling(reader)


def _scaled(parameters: dict[str, Any], scaling: dict[str, Any]) -> dict[str, Any]:
    """Add scaling to rotary parameters; of two kinds of attention, only full attention has it."""
    if "full_attention" in parameters:
        return {
            **parameters,
            "full_attention": {**parameters["full_attention"], **scaling},
        }
    return {**parameters, **scaling}


def _llama3_scaling(reader: GGUFReader) -> dict[str, Any] | None:
    """Return Llama 3's scaling if the frequency factors of a file are those of a published model.

    llama.cpp divides the frequencies by these factors, which it computes as Transformers does.
    """
    found = next((t.data for t in reader.tensors if t.name == FREQUENCIES), None)
    base = value_of(reader, f"{value_of(reader, 'general.architecture')}.rope.freq_base")
    if found is None or base is None:
        return None
    for factor in LLAMA3_FACTORS:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if np.allclose(found, llama3_factors(scaling, float(base), len(found)), rtol=1e-4):
            return scaling
    return None


def llama3_factors(scaling: dict[str, Any], base: float, count: int) -> np.ndarray[Any, Any]:
    """Return the `count` factors by which Llama 3's scaling divides the rotary frequencies."""
    wavelengths = 2 * math.pi * base ** (np.arange(count) / count)
    turns = scaling["original_max_position_embeddings"] / wavelengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def complete_tokenizer(tokenizer: PreTrainedTokenizerFast, reader: GGUFReader) -> None:
    """Split every digit off before GPT-2's splitting where the tokenizer was trained so."""
    if value_of(reader, "tokenizer.ggml.pre") in DIGITS_ALONE:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def value_of(reader: GGUFReader, key: str) -> Any:
    """Return a value of a file's metadata, None where it has none."""
    field = reader.get_field(key)
    return None if field is None else field.contents()
