"""GGUF files of pico models, written as llama.cpp's converter writes them.

It renames the tensors, stores Llama's queries and keys with the two halves of each head
interleaved, Gemma's norms plus one and GPT-2's matrices transposed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.versions import require_version

from errata.models.gguf import LOADER
from tiny import CONFIGS, VOCABULARY, tiny_model

gguf = pytest.importorskip("gguf")
try:
    require_version(LOADER)
except ImportError:
    pytest.skip(f"GGUF files need {LOADER}", allow_module_level=True)

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
"""Pico models, and what llama.cpp calls their architecture."""
UNTOLD = {
    "gemma2": {"query_pre_attn_scalar": 256},
    "gemma3_text": {"query_pre_attn_scalar": 256, "layer_types": None},
    "mistral": {"sliding_window": None},
}
"""Settings that no GGUF file holds, as readers assume them."""


def readable_model(pico: str) -> PreTrainedModel:
    """Return a pico model with the settings that readers of GGUF files assume."""
    values = {**CONFIGS[pico]().to_dict(), **UNTOLD.get(pico, {})}
    model = AutoModelForCausalLM.from_config(type(CONFIGS[pico]()).from_dict(values)).eval()
    model.load_state_dict(tiny_model(pico).state_dict())
    return model


def write_gguf(
    path: Path,
    pico: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: PreTrainedModel | None = None,
    kind: Any = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    leave: tuple[str, ...] = (),
) -> PreTrainedModel:
    """Write a pico model as a GGUF file; return the model.

    `kind` is a quantisation for the matrices whose rows it fits; `metadata` and `tensors` are
    added, and tensors whose name contains one of `leave` are left out.
    """
    model = readable_model(pico) if model is None else model
    architecture, config = ARCHITECTURES[pico], model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"pico {pico}")  # "mistral" alone would change the type
    _settings(writer, architecture, config)
    _vocabulary(writer, tokenizer)
    for key, value in (metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(key, value)
    for name, values in {**_tensors(model, architecture), **(tensors or {})}.items():
        if any(part in name for part in leave):
            continue
        if kind is not None and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _settings(writer: Any, architecture: str, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)
    parameters = config.rope_parameters
    writer.add_rope_freq_base(parameters.get("full_attention", parameters)["rope_theta"])
    if architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "phi3" and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)


def _vocabulary(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [3 if token == tokenizer.bos_token else 1 for token in tokens]
    spare = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{number}]" for number in range(spare)])
    writer.add_token_types(kinds + [5] * spare)
    merges = described["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(bool(described["post_processor"]["special_tokens"]))
    writer.add_chat_template("{{ messages[0].content }}")


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """Return a model's tensors by the names and in the layout of GGUF."""
    config, named = model.config, {}
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        base, _, leaf = name.rpartition(".")
        values = tensor.float().numpy()
        if architecture == "llama" and base.endswith("q_proj"):
            values = _interleaved(values, config.num_attention_heads)
        if architecture == "llama" and base.endswith("k_proj"):
            values = _interleaved(values, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "gpt2" and ".h." in name and values.ndim == 2:
            values = values.T
        found = names.get_name(base)
        assert found is not None, name
        named[f"{found}.{leaf}"] = np.ascontiguousarray(values)
    return named


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Interleave the two halves of each head, as llama.cpp does for its rotary positions."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def logits(model: PreTrainedModel, count: int = 10) -> torch.Tensor:
    """Return a model's logits for fixed token ids, in float64."""
    ids = torch.arange(3, 3 + count)[None] * 7 % VOCABULARY
    with torch.no_grad():
        return model.double()(ids).logits
