"""Families: the module paths of each model type's blocks and MLP output matrices.

A family is one row of data, keyed by `config.model_type`; no other module depends on the model
type. Weights are handled as W: (d_out, d_in), so that a layer computes W k + b; `Conv1D` (GPT-2)
stores the transpose, which only `oriented` handles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.core.errors import ErrataError


class Scale(nn.Module):
    """Multiply by a constant: what Granite does to the output of an MLP."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `factor` times `hidden`."""
        return hidden * self.factor


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
    scale: str | None = None
    """Field of the configuration: the factor of the MLP's output before the residual stream."""
    block_attention_out: str | None = None
    """The module with the attention's output, where that of `block_attention` is a sum with the
    residual stream."""
    block_recurrent: str | None = None
    """The module in place of attention in blocks of layer type `linear_attention`."""
    experts: bool = False
    """Whether MLPs are mixtures of experts, chosen by a router for each token, so that no single
    matrix produces their output; such models are not edited, and `block_mlp_out` is not used."""
    needs: tuple[tuple[str, object, str], ...] = ()
    """Fields of the configuration that must have a value: name, value, and what it stands for."""

    @property
    def adds_unchanged(self) -> bool:
        """Whether the MLP's output is added to the residual stream without a norm or a factor."""
        return self.block_post_norm is None and self.scale is None

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
        """Return the module whose output the attention of block `index` adds to the stream."""
        path = self.attention_path(model, index)
        if path == self.block_attention and self.block_attention_out is not None:
            path = self.block_attention_out
        return self.block(model, index).get_submodule(path)

    def attention_path(self, model: PreTrainedModel, index: int) -> str:
        """Return the path within block `index` of its attention, or of what is in its place."""
        if self.block_recurrent is None:
            return self.block_attention
        kind = model.config.get_text_config().layer_types[index]
        return self.block_recurrent if kind == "linear_attention" else self.block_attention

    def mlp_out(self, model: PreTrainedModel, index: int) -> nn.Module:
        """Return the module that holds the MLP output matrix of block `index`.

        Raises `ErrataError` for mixtures of experts.
        """
        check_editable(model)
        return self.block(model, index).get_submodule(self.block_mlp_out)

    def after_mlp(self, model: PreTrainedModel, index: int) -> nn.Module | None:
        """Return the norm or `Scale` after the MLP of block `index`; None where there is none."""
        if self.block_post_norm is not None:
            return self.block(model, index).get_submodule(self.block_post_norm)
        if self.scale is not None:
            return Scale(getattr(model.config.get_text_config(), self.scale))
        return None

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
_GPT2 = Family("transformer.h", "mlp", "mlp.c_proj", "attn", "transformer.wte")

FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "gptj": replace(_GPT2, block_mlp_out="mlp.fc_out"),
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
    **dict.fromkeys(
        (
            *("gemma", "smollm3", "olmo", "cohere", "cohere2", "stablelm", "glm", "ernie4_5"),
            *("nemotron", "seed_oss", "hunyuan_v1_dense", "ministral", "ministral3", "apertus"),
            *("arcee", "helium"),
        ),
        _LLAMA,
    ),
    "olmo3": _POST_NORM,
    "granite": replace(_LLAMA, scale="residual_multiplier"),
    "glm4": replace(_LLAMA, block_post_norm="post_mlp_layernorm"),
    "exaone4": _POST_NORM,
    "starcoder2": replace(_LLAMA, block_mlp_out="mlp.c_proj"),
    "gpt_bigcode": _GPT2,
    "gpt_neo": _GPT2,
    "falcon": Family(
        "transformer.h",
        "mlp",
        "mlp.dense_4h_to_h",
        "self_attention",
        "transformer.word_embeddings",
    ),
    "bloom": Family(  # its MLP and attention add the residual stream themselves
        "transformer.h",
        "mlp.dense_4h_to_h",
        "mlp.dense_4h_to_h",
        "self_attention",
        "transformer.word_embeddings",
        block_attention_out="self_attention.dense",
        needs=(("slow_but_exact", False, "matrices that run in one piece"),),
    ),
    "opt": Family(  # its MLP is not a module of its own
        "model.decoder.layers",
        "fc2",
        "fc2",
        "self_attn",
        "model.decoder.embed_tokens",
        needs=(("do_layer_norm_before", True, "norms before the MLP, not behind the sum"),),
    ),
    "qwen3_5_text": replace(_LLAMA, block_recurrent="linear_attn"),
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v3"),
        replace(_LLAMA, experts=True),
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


def check_config(config: PreTrainedConfig, *, to_edit: bool = False) -> None:
    """Raise `ErrataError` for a configuration whose type, or a setting of it, is not supported.

    With `to_edit` also for a type that can be used but not edited.
    """
    text = config.get_text_config()
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal is not None and causal.config_class is type(text):
        config = text  # only the text model of a multimodal checkpoint is loaded
    check_type(config.model_type)
    family = FAMILIES[config.model_type]
    if to_edit and family.experts:
        raise _mixture(config.model_type)
    for name, value, meaning in family.needs:
        if (found := getattr(text, name, value)) != value:
            raise ErrataError(
                f"{config.model_type} models with {name}: {found} are not supported",
                f"errata needs {name}: {value} ({meaning}); choose another checkpoint",
            )


def check_editable(model: PreTrainedModel) -> None:
    """Raise `ErrataError` for mixtures of experts, which no method edits."""
    if family_of(model).experts:
        raise _mixture(model.config.model_type)


def _mixture(model_type: str) -> ErrataError:
    return ErrataError(
        f"{model_type} models cannot be edited: their MLPs are mixtures of experts, so no single "
        "matrix produces the output of an MLP",
        "choose a dense model (`errata ls families`); this one can be evaluated, traced, tuned and "
        "used for chat",
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
