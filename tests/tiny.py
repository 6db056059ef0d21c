"""Pico models and tokenizers, made on the spot: random weights, every family, nothing square.

`tiny_model("gpt2")` is a fresh copy of a model that was built once, `tiny_tokenizer(bos=True)`
a byte-level BPE over a few invented sentences. The weights are large enough for edits to
have an effect, and biases, norms and dropout are not at their defaults, so that code which
forgets one of them gives other numbers. A family joins by a row in `CONFIGS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from errata.family import FAMILIES, family_of
from errata.request import EditRequest

VOCABULARY = 320
BLOCKS = 4
POSITIONS = 128
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


def _gpt2() -> PreTrainedConfig:
    return GPT2Config(
        n_embd=24, n_head=3, n_inner=56, n_layer=BLOCKS, n_positions=POSITIONS, **SHARED
    )


def _gptj() -> PreTrainedConfig:
    return GPTJConfig(
        n_embd=24,
        n_head=2,
        rotary_dim=4,
        n_inner=40,
        n_layer=BLOCKS,
        n_positions=POSITIONS,
        resid_pdrop=0.1,
        tie_word_embeddings=False,
        **SHARED,
    )


def _llama() -> PreTrainedConfig:
    return LlamaConfig(
        hidden_size=24,
        intermediate_size=56,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        attention_dropout=0.1,
        tie_word_embeddings=False,
        **SHARED,
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "llama": _llama,
}
"""The pico configuration of every family in `errata.family.FAMILIES`."""


def tiny_model(model_type: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a fresh copy of the family's pico model, in eval mode."""
    return copy.deepcopy(_built(model_type)).to(dtype)


@cache
def _built(model_type: str) -> PreTrainedModel:
    assert model_type in FAMILIES, f"{model_type} is no family"
    assert model_type in CONFIGS, f"tests/tiny.py has no row for the family {model_type}; add one"
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(CONFIGS[model_type]()).eval()
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(name, parameter, source))
    write = family_of(model).write(model, 0).weight
    wide, narrow = max(write.shape), min(write.shape)
    assert wide not in (narrow, 4 * narrow), "a pico model has no square and no fourfold MLP"
    return model


def _drawn(name: str, parameter: Tensor, source: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=source)
    if parameter.ndim > 1:
        return 0.3 * noise
    return 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer, with or without a BOS that a post-processor sets."""
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
