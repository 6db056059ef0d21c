"""Families: the module paths of each model type's blocks and MLP output matrices.

A family is one row of data, keyed by `config.model_type`; no other module depends on the model
type. Weights are handled as W: (d_out, d_in), so that a layer computes W k + b; `Conv1D` (GPT-2)
stores the transpose, which only `oriented` handles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.core.errors import ErrataError


@dataclass(frozen=True)
class Family:
    """Module paths of one model type; paths in `block_*` are relative to a block."""

    blocks: str
    """The list of blocks."""
    block_mlp: str
    """The MLP of a block."""
    block_mlp_out: str
    """The MLP's output matrix: the weight that editors change."""
    block_attention: str
    """The attention of a block."""
    embedding: str
    """The token embedding."""
    block_post_norm: str | None = None
    """The RMS norm between the MLP and the residual stream; None in most families."""

    def block_count(self, model: PreTrainedModel) -> int:
        """Return the number of blocks of the model."""
        return len(self._block_list(model))

    def block(self, model: PreTrainedModel, index: int) -> nn.Module:
        """Return block `index`, counted from 0; raises `ErrataError` when there is none."""
        blocks = self._block_list(model)
        if not 0 <= index < len(blocks):
            raise ErrataError(
                f"there is no block {index}: the model has blocks 0 to {len(blocks) - 1}",
                f"choose blocks between 0 and {len(blocks) - 1}",
            )
        return blocks[index]

    def mlp(self, model: PreTrainedModel, index: int) -> nn.Module:
        """Return the MLP of block `index`."""
        return self.block(model, index).get_submodule(self.block_mlp)

    def attention(self, model: PreTrainedModel, index: int) -> nn.Module:
        """Return the attention of block `index`."""
        return self.block(model, index).get_submodule(self.block_attention)

    def mlp_out(self, model: PreTrainedModel, index: int) -> nn.Module:
        """Return the module that holds the MLP output matrix of block `index`."""
        return self.block(model, index).get_submodule(self.block_mlp_out)

    def post_norm(self, model: PreTrainedModel, index: int) -> nn.Module | None:
        """Return the norm after the MLP of block `index`; None where there is none."""
        if self.block_post_norm is None:
            return None
        return self.block(model, index).get_submodule(self.block_post_norm)

    def weight_name(self, index: int) -> str:
        """Return the full parameter name of the MLP output matrix of block `index`."""
        return f"{self.blocks}.{index}.{self.block_mlp_out}.weight"

    def _block_list(self, model: PreTrainedModel) -> nn.ModuleList:
        blocks = model.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList), type(blocks)
        return blocks


_LLAMA = Family(
    blocks="model.layers",
    block_mlp="mlp",
    block_mlp_out="mlp.down_proj",
    block_attention="self_attn",
    embedding="model.embed_tokens",
)
_POST_NORM = replace(_LLAMA, block_post_norm="post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "mlp", "mlp.c_proj", "attn", "transformer.wte"),
    "gptj": Family("transformer.h", "mlp", "mlp.fc_out", "attn", "transformer.wte"),
    "gpt_neox": Family(
        "gpt_neox.layers", "mlp", "mlp.dense_4h_to_h", "attention", "gpt_neox.embed_in"
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi": replace(_LLAMA, block_mlp_out="mlp.fc2"),
    "phi3": _LLAMA,
    "olmo2": _POST_NORM,
    "gemma2": _POST_NORM,
    "gemma3_text": _POST_NORM,
    "gemma3": replace(
        _POST_NORM,
        blocks="model.language_model.layers",
        embedding="model.language_model.embed_tokens",
    ),
}
"""Every supported `config.model_type`. A new family is one row."""


def family_of(model: PreTrainedModel) -> Family:
    """Return the model's family by `config.model_type`; raises `ErrataError` for an unknown one."""
    check_type(model.config.model_type)
    return FAMILIES[model.config.model_type]


def check_type(model_type: str) -> None:
    """Raise `ErrataError` for a `config.model_type` that is not in `FAMILIES`."""
    if model_type not in FAMILIES:
        raise ErrataError(
            f"models of type {model_type!r} are not supported yet",
            f"supported types: {', '.join(sorted(FAMILIES))}",
            "a family is one row in errata/models/families.py; CONTRIBUTING.md shows how to add it",
        )


def positions_of(model: PreTrainedModel) -> int:
    """Return the model's maximum number of positions; 1,000,000 where its config has none."""
    return int(
        getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    )


def oriented(module: nn.Module, tensor: Tensor) -> Tensor:
    """Convert between the layout of the module's weight and (d_out, d_in), as a view."""
    return tensor.T if isinstance(module, Conv1D) else tensor


def width_of(module: nn.Module) -> int:
    """Return d_in of a linear module."""
    weight = module.get_parameter("weight")
    return oriented(module, weight).shape[1]


def weight_of(model: PreTrainedModel, name: str) -> tuple[nn.Module, nn.Parameter]:
    """Return the module and parameter named `name`; raises `ErrataError` when it cannot be edited.

    Offloaded weights (on `meta`) and weights split over devices are rejected: an edit of them would
    be lost.
    """
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        parameter = getattr(module, leaf)
    except AttributeError:
        parameter = None
    if not isinstance(parameter, nn.Parameter):
        raise ErrataError(
            f"the model has no weight named {name}", "was the patch made for another architecture?"
        )
    if parameter.is_meta:
        raise ErrataError(
            f"{name} is offloaded; an edit of it would be lost", "load the model onto one device"
        )
    if type(parameter.data) is not Tensor or not torch.is_floating_point(parameter):
        raise ErrataError(
            f"{name} is a {type(parameter.data).__name__} of {parameter.dtype}, "
            "which cannot be edited in place",
            "load the model unquantised and not split over devices",
        )
    return module, parameter
