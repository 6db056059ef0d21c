"""Sizes of a model, read from its configuration and weights, for cost and memory estimates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

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
    """Input width of the MLP's output matrix, of all experts that work on a token."""
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
    """Matrix entries of each block that work on a token."""
    last_mlp_weights: int
    """Those of the last block's MLP."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Read the sizes of a model."""
        config, family = model.config.get_text_config(), family_of(model)
        count, active = family.block_count(model), _active_experts(model)
        return cls(
            blocks=count,
            width=config.hidden_size,
            mlp=_mlp_width(model),
            cached=_cached(config) if caches_tokens(model) else 0,
            heads=config.num_attention_heads,
            vocabulary=model.get_output_embeddings().weight.shape[0],
            itemsize=max(model.dtype.itemsize, 4),
            eager=getattr(config, "_attn_implementation", None) == "eager",
            block_weights=tuple(
                _entries(family.block(model, index), active) for index in range(count)
            ),
            last_mlp_weights=_entries(family.mlp(model, count - 1), active),
        )

    def forward(self, tokens: float, heads: float, blocks: Iterable[int] | None = None) -> float:
        """Return the FLOPs of `tokens` through `blocks` (all), `heads` of them to logits."""
        chosen = range(self.blocks) if blocks is None else blocks
        entries = sum(self.block_weights[block] for block in chosen)
        return 2 * (tokens * entries + heads * self.vocabulary * self.width)


def _cached(config: PreTrainedConfig) -> int:
    """Return the numbers per token and block in a cache of keys and values."""
    if hasattr(config, "kv_lora_rank"):  # latent attention stores what it expands to heads
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    heads = config.num_attention_heads
    cached_heads = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "multi_query", False):  # gpt_bigcode, and falcon before its later blocks
        cached_heads = heads if getattr(config, "new_decoder_architecture", False) else 1
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * cached_heads * head_width)


def _active_experts(model: PreTrainedModel) -> int | None:
    """Return the number of routed experts that work on a token; None for dense models."""
    if not family_of(model).experts:
        return None
    return int(model.config.get_text_config().num_experts_per_tok)


def _mlp_width(model: PreTrainedModel) -> int:
    family, active = family_of(model), _active_experts(model)
    if active is None:
        return width_of(family.mlp_out(model, 0))
    mlp = family.mlp(model, family.block_count(model) - 1)
    matrices = {
        name.removesuffix(".weight"): weight
        for name, weight in mlp.named_parameters()
        if weight.ndim > 1
    }
    entries = (_used(w, active) for name, w in matrices.items() if name.endswith("down_proj"))
    return sum(entries) // int(model.config.get_text_config().hidden_size)


def _entries(module: nn.Module, active: int | None) -> int:
    return sum(_used(weight, active) for weight in module.parameters() if weight.ndim > 1)


def _used(weight: Tensor, active: int | None) -> int:
    """Return the entries that work on a token; experts lie in the first of three dimensions."""
    if active is None or weight.ndim < 3:
        return weight.numel()
    return weight[0].numel() * min(active, len(weight))


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a model's weights."""
    return sum(parameter.nbytes for parameter in model.parameters())
