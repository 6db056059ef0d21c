"""What is measured: shapes of models with random weights, and SmolLM2-135M-Instruct."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import errata
from prompts import tokenizer


class Subject(NamedTuple):
    """A model with its tokenizer, and the blocks that are edited."""

    name: str
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    blocks: tuple[int, ...]


@cache
def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return SmolLM2-135M-Instruct in float32: 30 blocks of 576, MLP 1,536, vocabulary 49,152."""
    edited = errata.load("smollm2", device="cpu")
    return edited.model, edited.tokenizer


def gpt2_small(blocks: int = 12) -> PreTrainedModel:
    """Return a model of GPT-2's shape: 12 blocks of 768, MLP 3,072, vocabulary 50,257."""
    return _random(GPT2Config(n_layer=blocks))


def gpt2_xl_widths(blocks: int = 48) -> PreTrainedModel:
    """Return a model of GPT-2 XL's widths, 1,600 and 6,400, with as many blocks as asked for."""
    return _random(GPT2Config(n_embd=1600, n_head=25, n_layer=blocks))


def llama_128k(blocks: int = 8) -> PreTrainedModel:
    """Return a Llama of 1,024 with MLP 3,584 and the vocabulary of Llama 3, 128,256."""
    return _random(
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=1024,
            intermediate_size=3584,
            num_hidden_layers=blocks,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            rope_theta=500_000.0,
            tie_word_embeddings=False,
        )
    )


def _random(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a model in eval mode, float32, with the library's own initialisation from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


GPT2_SMALL = Subject("gpt2-small", lambda: (gpt2_small(), tokenizer()), (3, 4, 5, 6, 7))
LLAMA_128K = Subject("llama-128k", lambda: (llama_128k(), tokenizer()), (2, 3, 4))
SMOLLM2 = Subject("smollm2", smollm2, (5, 6, 7, 8, 9))
