"""Sizes of a model, read from its configuration and weights, for cost and memory estimates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from errata.models.families import family_of, width_of
from errata.models.prefix_cache import caches_tokens

STREAMS = 14
"""Hidden-size vectors stored for backward per token and block: norms, attention, sums."""
MLPS = 5
"""MLP-width vectors stored for backward per token and block: mostly GPT-2's activation."""
LOGITS = 4
"""Float32 vectors of the vocabulary size per predicted position: logits, log p, gradient."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that determine the FLOPs and memory of a forward pass."""

    blocks: int
    width: int
    """The hidden size."""
    mlp: int
    """Input width of the MLP's output matrix."""
    cached: int
    """Numbers per token and block in the key-value cache: keys and values of all its heads; 0 for
    a model that runs whole rows instead (see `prefix_cache.caches_tokens`)."""
    heads: int
    vocabulary: int
    """Rows of the output embedding."""
    itemsize: int
    """Bytes per number in the target search, which runs in float32 at least."""
    eager: bool
    """Whether attention weights are materialised."""
    block_weights: tuple[int, ...]
    """Matrix entries of each block."""
    last_mlp_weights: int
    """Matrix entries of the last block's MLP."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Read the sizes of a model."""
        config, family = model.config.get_text_config(), family_of(model)
        heads = config.num_attention_heads
        cached_heads = getattr(config, "num_key_value_heads", None) or heads
        if getattr(config, "multi_query", False):  # gpt_bigcode, and falcon before its later blocks
            cached_heads = heads if getattr(config, "new_decoder_architecture", False) else 1
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        count = family.block_count(model)
        return cls(
            blocks=count,
            width=config.hidden_size,
            mlp=width_of(family.mlp_out(model, 0)),
            cached=2 * cached_heads * head_width if caches_tokens(model) else 0,
            heads=heads,
            vocabulary=model.get_output_embeddings().weight.shape[0],
            itemsize=max(model.dtype.itemsize, 4),
            eager=getattr(config, "_attn_implementation", None) == "eager",
            block_weights=tuple(_entries(family.block(model, index)) for index in range(count)),
            last_mlp_weights=_entries(family.mlp(model, count - 1)),
        )

    def forward(self, tokens: float, heads: float, blocks: Iterable[int] | None = None) -> float:
        """Return the FLOPs of `tokens` through `blocks` (all), `heads` of them to logits."""
        chosen = range(self.blocks) if blocks is None else blocks
        entries = sum(self.block_weights[block] for block in chosen)
        return 2 * (tokens * entries + heads * self.vocabulary * self.width)


def _entries(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a model's weights."""
    return sum(parameter.nbytes for parameter in model.parameters())
