"""The test matrix of the laws: every method on every family, with settings for pico models.

A method joins by being in METHODS; `SUITED` is for those whose defaults mean nothing at this
size. `found` is everything about a model that an edit must leave as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.data.request import EditRequest
from errata.methods import METHODS, ClosedForm, Method
from errata.methods.closed_form.rewrite import Rewrite, rewrite_of
from errata.methods.edit import compute_edit
from errata.models.families import family_of
from errata.patches.base import Base, Provenance
from errata.patches.edited_model import EditedModel
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.statistics.measure import measure, token_rows
from errata.statistics.second_moment import SecondMoment
from tiny import BLOCKS, CONFIGS, EXPERTS, FACTS, SENTENCES, tiny_model, tiny_tokenizer, width

PREFIXES = ("Well. ", "So the people of Tarn say. ")
SETTINGS: dict[str, Any] = {
    "blocks": (1, 2),
    "search": {"steps": 4, "learning_rate": 0.3, "clamp": 2.0, "stop_at": 0.0},
    "contexts": {"prefixes": PREFIXES},
}
SUITED: dict[str, dict[str, Any]] = {
    "rome": {"blocks": (2,)},
    "memit": {"moment_weight": 0.5},
    "alphaedit": {"ridge": 0.05, "null_space_threshold": 0.2, "relative_threshold": True},
}

TYPICAL = ("gpt2", "llama", "gptj", "gemma2")
"""Families of the default suite: Conv1D and biases; the usual; attention and MLP in parallel; norms
behind both, soft caps and windows. The slow tests run over all families."""
SHAPES = (*TYPICAL, "gemma3")
"""Those of laws on weights, files and hooks: gemma3's text model is part of a larger one."""


def by_default(names: Sequence[str], cases: Sequence[Any]) -> list[Any]:
    """Mark the cases of other families slow; a case is a family, or a tuple with one first."""
    return [
        case if values[0] in names else pytest.param(*values, marks=pytest.mark.slow)
        for case in cases
        for values in [(case,) if isinstance(case, str) else case]
    ]


every_family = pytest.mark.parametrize("model_type", list(CONFIGS))
over_families = pytest.mark.parametrize("model_type", by_default(TYPICAL, list(CONFIGS)))
over_all = pytest.mark.parametrize(
    "model_type", by_default((*TYPICAL, "qwen2_moe"), [*CONFIGS, *EXPERTS])
)
"""Laws on what mixtures of experts can do too."""
over_shapes = pytest.mark.parametrize("model_type", by_default(SHAPES, list(CONFIGS)))
over_methods = pytest.mark.parametrize("method_name", list(METHODS))


def quick(method_name: str, **given: Any) -> ClosedForm:
    """Return the method with settings that suit a pico model."""
    method = METHODS[method_name].of({**SETTINGS, **SUITED.get(method_name, {}), **given})
    assert isinstance(method, ClosedForm), method
    return method


def edited_model(model_type: str, *, bos: bool = True, **to: Any) -> EditedModel:
    """Return a fresh pico model with its tokenizer and no patches."""
    return EditedModel(tiny_model(model_type, **to), tiny_tokenizer(bos=bos), f"tiny-{model_type}")


@cache
def _moments(model_type: str) -> dict[int, SecondMoment]:
    rows = token_rows(tiny_tokenizer(), SENTENCES, 64)
    return measure(tiny_model(model_type), rows, range(BLOCKS))


def moments_of(model_type: str) -> dict[int, SecondMoment]:
    """Return the second moments of all blocks, new objects at every call."""
    return {
        block: SecondMoment(moment.matrix.clone(), moment.count)
        for block, moment in _moments(model_type).items()
    }


@cache
def _patch(model_type: str, method_name: str) -> WeightPatch:
    edited, moments = edited_model(model_type), moments_of(model_type)
    return compute_edit(edited, FACTS[:2], quick(method_name), moments=moments)


def apply_edit(
    edited: EditedModel,
    requests: Sequence[EditRequest],
    method: Method,
    *,
    moments: Mapping[int, SecondMoment],
) -> WeightPatch:
    """Edit the model; the patch is applied and returned."""
    patch = compute_edit(edited, requests, method, moments=moments)
    edited.apply(patch)
    return patch


def patch_of(model_type: str, method_name: str) -> WeightPatch:
    """Return the patch of the first two facts, computed once."""
    return copy.deepcopy(_patch(model_type, method_name))


def random_patch(edited: EditedModel, seed: int, size: float = 0.05, rank: int = 2) -> WeightPatch:
    """Return a patch of random factors for blocks 1 and 2."""
    source, family, updates = torch.Generator().manual_seed(seed), family_of(edited.model), {}
    for block in (1, 2):
        write = family.mlp_out(edited.model, block)
        d_in = write.weight.numel() // width(edited.model)
        R = size * torch.randn(width(edited.model), rank, generator=source)
        A = torch.randn(rank, d_in, generator=source)
        updates[family.weight_name(block)] = Update.of(R, A, A.T)
    provenance = Provenance(
        base=Base(**edited.base.model_dump()),
        method="none",
        settings={"seed": seed},
        requests=FACTS[:1],
    )
    return WeightPatch(updates, provenance)


def rewrites_of(
    edited: EditedModel, requests: Sequence[EditRequest] = FACTS, *, mean_by_type: bool = True
) -> list[Rewrite]:
    """Return tokenised requests with two prefixes."""
    return [
        rewrite_of(
            edited.tokenizer,
            request,
            PREFIXES,
            where="subject_last",
            essence_prompt="{} is a",
            mean_by_type=mean_by_type,
        )
        for request in requests
    ]


def bits(tensor: Tensor) -> bytes:
    """Return a tensor's bytes, whatever its dtype."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def weights(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every parameter and buffer."""
    return {name: bits(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def found(model: PreTrainedModel) -> dict[str, Any]:
    """Return all that editing must preserve: weights, grads, flags, modes, hooks, forwards."""
    hooks = {
        (name, kind): list(held.items())
        for name, module in model.named_modules()
        for kind, held in vars(module).items()
        if kind.endswith("_hooks") or "_hooks_" in kind
        if isinstance(held, Mapping)
    }
    return {
        "weights": weights(model),
        "objects": {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()},
        "gradients": {
            name: None if p.grad is None else bits(p.grad) for name, p in model.named_parameters()
        },
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "forwards": {name: vars(module).get("forward") for name, module in model.named_modules()},
        "hooks": hooks,
        "config": model.config.to_dict(),
    }


def untidy(model: PreTrainedModel) -> None:
    """Put a model into an unusual state: mixed flags, modes, gradients and hooks."""
    family = family_of(model)
    model.train()
    family.block(model, 2).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
    for module in (family.block(model, 1), [*family.mlp(model, 2).modules()][-1]):
        module.register_forward_hook(lambda *_: None)
        module.register_forward_pre_hook(lambda *_: None)
    block = family.block(model, 3)
    vars(block)["forward"] = block.forward


def closeness(ours: Tensor, theirs: Tensor) -> float:
    """Return ‖ours - theirs‖ / ‖theirs‖, 0 if both are zero."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
