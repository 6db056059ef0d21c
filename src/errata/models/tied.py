"""Tied embeddings: the output embedding that is the same parameter as the input embedding.

An adapter may change one of the two alone, which one matrix cannot express. So the two are
separated before such an adapter is merged, and joined again where they came out equal.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

FLAG = "tie_word_embeddings"
"""The field of a configuration that ties the two embeddings, in the text model's or above it."""


def tied_weight(model: PreTrainedModel) -> nn.Parameter | None:
    """Return the parameter that is both the input and the output embedding; None without one."""
    head = model.get_output_embeddings()
    weight = getattr(model.get_input_embeddings(), "weight", None)
    same = isinstance(weight, nn.Parameter) and getattr(head, "weight", None) is weight
    return weight if same else None


def separate(wrapped: nn.Module, shared: nn.Parameter) -> None:
    """Give every module below `wrapped` that holds a shared weight, but one, its own copy."""
    holders = [each for each in wrapped.modules() if each._parameters.get("weight") is shared]
    for module in holders[1:]:
        module.weight = nn.Parameter(shared.detach().clone(), shared.requires_grad)


def join_or_untie(model: PreTrainedModel) -> None:
    """Share one parameter again if both embeddings are equal; else the configuration unties them.

    Without this, saving would keep one of the two, and loading would use it for both.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
    tied = head.weight is embedding.weight
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, FLAG):
            setattr(config, FLAG, tied)
