"""Pico models and tokenizers, built on the fly: random weights, every family, no square matrices.

`tiny_model("gpt2")` is a fresh copy of a model that was built once, `tiny_tokenizer(bos=True)`
a byte-level BPE over a few invented sentences. The weights are large enough for edits to
have an effect, and biases, norms and dropout are not at their defaults, so that code which
forgets one of them gives other numbers. A family joins by a row in `pico_configs.py`.
"""

from __future__ import annotations

import copy
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from errata.data.request import EditRequest
from errata.models.families import family_of
from pico_configs import BLOCKS, CONFIGS, POSITIONS, VOCABULARY, WINDOW
from pico_experts import EXPERTS

__all__ = [
    "BLOCKS",
    "BOS",
    "CONFIGS",
    "EXPERTS",
    "FACTS",
    "POSITIONS",
    "SENTENCES",
    "VOCABULARY",
    "WINDOW",
    "inner_width",
    "tiny_model",
    "tiny_tokenizer",
    "width",
]

BOS = "<s>"

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
    """Return a fresh copy of a pico model of `CONFIGS` or `EXPERTS`, in eval mode."""
    return copy.deepcopy(_built(pico)).to(dtype)


@cache
def _built(pico: str) -> PreTrainedModel:
    configs = CONFIGS | EXPERTS
    assert pico in configs, f"tests/pico_configs.py has no row {pico!r}; add one for a new family"
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(configs[pico]()).eval()
    source = torch.Generator().manual_seed(SEEDS.get(pico, 7))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(pico, name, parameter, source))
    if pico in EXPERTS:
        return model
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
