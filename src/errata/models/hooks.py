"""Reading and steering a forward pass, by the model's own forward and nothing else.

`record` captures inputs or outputs of modules and stops as soon as it has them; `steered`
passes outputs through functions;
`frozen` puts a model into a fixed state (eval mode, no parameter gradients) and takes it
back; `replaced` swaps the forward of modules for the time of a `with` block. Everything
is restored also when the body raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


class Site(NamedTuple):
    """A place to read: what goes into a module, or what comes out of it."""

    module: nn.Module
    side: Literal["input", "output"]


class _Stop(Exception):
    """Raised inside a forward pass once all that was asked for has been read."""


def first_tensor(value: Any) -> Any:
    """Return the hidden state of a block's output, which is a tuple in some families."""
    return value[0] if isinstance(value, tuple) else value


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def record(
    model: PreTrainedModel,
    ids: Tensor,
    sites: Sequence[Site],
    *,
    keeping: Callable[[int, Any], Any] = lambda index, value: value,
    **forward: Any,
) -> list[Any]:
    """Run `ids` (rows, tokens) up to the last of `sites`; return what was seen there.

    Inputs come as tensors, outputs as the module gave them (see `first_tensor`). `keeping` is
    given a site's index and what is seen there, at once, and returns what is to be kept of it.
    Gradients are the caller's business.
    """
    seen: dict[int, Any] = {}

    def keep(index: int, value: Any) -> None:
        if index not in seen:
            seen[index] = keeping(index, value)
        if len(seen) == len(sites):
            raise _Stop

    with ExitStack() as stack:
        for index, (module, side) in enumerate(sites):
            if side == "input":
                handle = module.register_forward_pre_hook(
                    lambda _, args, kwargs, i=index: keep(i, _input_of(args, kwargs)),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(lambda _, args, out, i=index: keep(i, out))
            stack.callback(handle.remove)
        with suppress(_Stop):
            usual = {"attention_mask": torch.ones_like(ids), "use_cache": False}
            model(input_ids=ids, **{**usual, **forward})
    assert len(seen) == len(sites), "a recorded module did not run"
    return [seen[index] for index in range(len(sites))]


class _FinalStates(BaseModelOutputWithPastAndCrossAttentions):
    """What any base model returns, with its final states alone."""

    image_hidden_states = None


def logits_at(model: PreTrainedModel, keep: Tensor, **forward: Any) -> Tensor:
    """Return logits (kept, vocabulary) at the places that the mask `keep` (rows, tokens) marks."""
    return logits_of(model, states_at(model, keep, **forward))


def states_at(model: PreTrainedModel, keep: Tensor, **forward: Any) -> Tensor:
    """Return what the head would read, (kept, d), at the places that the mask `keep` marks."""
    states: Tensor = model.base_model(**forward)[0]
    return states[keep]


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits (n, vocabulary) of final states (n, d).

    The model's own forward makes them, so that whatever it does to logits (scaling, soft-capping)
    is done; only what comes before its head is skipped.
    """

    def hand_over(*args: Any, **kwargs: Any) -> _FinalStates:
        return _FinalStates(last_hidden_state=states[None])

    with replaced({model.base_model: hand_over}):
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Hold the model in eval mode with no parameter asking for gradients; restore both after."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def steered(changes: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Pass the hidden state that each module gives through a function, for the time of the block.

    Whatever else a module gives beside it stays as it is.
    """
    with ExitStack() as stack:
        for module, change in changes.items():

            def hook(_: nn.Module, args: Any, out: Any, change: Any = change) -> Any:
                state = change(first_tensor(out))
                return (state, *out[1:]) if isinstance(out, tuple) else state

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another `forward` for the time of the block."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            before = module.__dict__.get("forward")
            if before is None:
                stack.callback(module.__dict__.pop, "forward")
            else:
                stack.callback(module.__dict__.__setitem__, "forward", before)
            module.__dict__["forward"] = forward
        yield
