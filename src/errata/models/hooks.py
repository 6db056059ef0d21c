"""Recording and changing a forward pass, always through the model's own forward.

`record` captures inputs or outputs of modules and stops the pass once it has them; `steered`
changes outputs; `frozen` holds a model in eval mode without parameter gradients; `replaced`
substitutes the forward of modules. The last three are context managers that restore everything,
also when the body raises.
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
    """The input or the output of a module."""

    module: nn.Module
    side: Literal["input", "output"]


class _Stop(Exception):
    """Raised inside a forward pass once every site has been recorded."""


def first_tensor(value: Any) -> Any:
    """Return the hidden state in the output of a block, which is a tuple in some families."""
    return value[0] if isinstance(value, tuple) else value


def with_first(value: Any, state: Tensor) -> Any:
    """Return the output `value` of a module with another hidden state."""
    return (state, *value[1:]) if isinstance(value, tuple) else state


def by_rows(value: Any, rows: int) -> Any:
    """Return a module's output or input with its state as (rows, tokens, width).

    The MLPs of some families have rows and tokens in one dimension.
    """
    state = first_tensor(value)
    return with_first(value, state.view(rows, -1, state.shape[-1])) if state.ndim == 2 else value


def _own(value: Any) -> Any:
    """Return a copy of the state in `value`, which the rest of the pass may change in place."""
    return with_first(value, first_tensor(value).clone())


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def record(
    model: PreTrainedModel,
    ids: Tensor,
    sites: Sequence[Site],
    *,
    transform: Callable[[int, Any], Any] = lambda index, value: value,
    **forward: Any,
) -> list[Any]:
    """Run `ids` (rows, tokens) up to the last of `sites`; return the values recorded there.

    Inputs are recorded as tensors, outputs as the module returned them (see `first_tensor`).
    `transform` is called with a site's index and value as soon as it is computed; what it returns
    is recorded instead. States are (rows, tokens, width) also where a module has rows and tokens
    in one dimension. Gradient mode is left to the caller.
    """
    found: dict[int, Any] = {}

    def store(index: int, value: Any) -> None:
        if index not in found:
            value = by_rows(value, len(ids))
            found[index] = transform(index, value)
            if found[index] is value and len(found) < len(sites):
                found[index] = _own(value)
        if len(found) == len(sites):
            raise _Stop

    with ExitStack() as stack:
        for index, (module, side) in enumerate(sites):
            if side == "input":
                handle = module.register_forward_pre_hook(
                    lambda _, args, kwargs, i=index: store(i, _input_of(args, kwargs)),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(lambda _, args, out, i=index: store(i, out))
            stack.callback(handle.remove)
        with suppress(_Stop):
            defaults = {"attention_mask": torch.ones_like(ids), "use_cache": False}
            model(input_ids=ids, **{**defaults, **forward})
    assert len(found) == len(sites), "a recorded module did not run"
    return [found[index] for index in range(len(sites))]


class _FinalStates(BaseModelOutputWithPastAndCrossAttentions):
    """The output type of any base model, with only the final hidden states."""

    image_hidden_states = router_logits = None


def logits_at(model: PreTrainedModel, keep: Tensor, **forward: Any) -> Tensor:
    """Return logits (n, vocabulary) at the n positions in the mask `keep` (rows, tokens)."""
    return logits_of(model, states_at(model, keep, **forward))


def states_at(model: PreTrainedModel, keep: Tensor, **forward: Any) -> Tensor:
    """Return the final hidden states (n, d) at the n positions in the mask `keep`."""
    states: Tensor = model.base_model(**forward)[0]
    return states[keep]


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits (n, vocabulary) of final hidden states (n, d).

    They come from the model's own forward, with everything that it does to logits (scaling,
    soft-capping); only the base model below the head is skipped.
    """

    def final_states(*args: Any, **kwargs: Any) -> _FinalStates:
        return _FinalStates(last_hidden_state=states[None])

    below = dict.fromkeys((model.base_model, model.get_decoder()), final_states)  # opt calls either
    with replaced(below):
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Hold the model in eval mode, with no parameter requiring gradients; restore both after."""
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
def steered(changes: Mapping[nn.Module, Callable[[Tensor], Tensor]], rows: int) -> Iterator[None]:
    """Apply a function to the hidden state that each module outputs, within a `with` block.

    States are (rows, tokens, width) as in `record`; the function must not return a tensor that it
    also stores. Other elements of a module's output are left unchanged.
    """
    with ExitStack() as stack:
        for module, change in changes.items():

            def hook(_: nn.Module, args: Any, out: Any, change: Any = change) -> Any:
                state = change(first_tensor(by_rows(out, rows)))
                return with_first(out, state.view(first_tensor(out).shape))

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of modules within a `with` block."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            original = module.__dict__.get("forward")
            if original is None:
                stack.callback(module.__dict__.pop, "forward")
            else:
                stack.callback(module.__dict__.__setitem__, "forward", original)
            module.__dict__["forward"] = forward
        yield
