"""Who a model is: hashes of weights and tokenizers that survive loading in another dtype.

A weight is hashed as its values rounded to bfloat16, so a checkpoint has one identity
whether it is loaded in float32 or bfloat16. The hash covers the set of weights, not
their names or order, so tied heads and renamed modules do not matter. (float16 rounds
otherwise: a float32 checkpoint loaded in float16 counts as another model.)
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError


def tensor_hash(tensor: Tensor) -> str:
    """Return a hash of a tensor's shape and of its values in bfloat16."""
    if tensor.is_meta:
        raise ErrataError(
            "the model is partly offloaded, so its weights cannot be read",
            "load it onto one device",
        )
    data = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(data.numpy().data)
    return digest.hexdigest()


def weights_hash(weights: Iterable[Tensor]) -> str:
    """Return a hash of a set of weights, whatever their order; equal weights count once."""
    return hashlib.sha256("".join(sorted({tensor_hash(w) for w in weights})).encode()).hexdigest()


def model_hash(model: PreTrainedModel) -> str:
    """Return the hash over all parameters of a model."""
    return weights_hash(model.parameters())


def check_finite(model: PreTrainedModel) -> None:
    """Raise `ErrataError` when a weight holds NaN or infinity."""
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            continue
        if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ErrataError(
                f"the model's weights hold NaN or infinity, in {name}",
                "was its training or its download cut short? load another copy",
                "or load it in a wider dtype: --dtype float32 (float16 ends at 65504)",
            )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that decides a fast tokenizer's token ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("errata", "torch", "transformers")}
