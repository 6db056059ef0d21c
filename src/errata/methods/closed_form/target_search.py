"""Target values: hidden states at the subject for which the model gives the new answer.

For each request a vector δ, added at one block and token position, is found by gradient descent
(arXiv 2202.05262 eq. 4, 2210.07229 eq. 16) on

    mean over prefixes of NLL(target) / tokens  +  kl · KL(now ‖ before)  +  decay · ‖δ‖ / ‖h₀‖²

where the KL is that of the next-token distribution after "{subject} is a" and h₀ is the hidden
state without a prefix. Many requests are searched together with the same result as alone: rows
share forward passes, only what δ can reach is computed (see `models.suffix_run`), and a request
leaves the batch when its loss is small enough.

A target holds when each of its tokens has at least the probability `HOLDS` in every context, so
that greedy decoding gives it. With `max_steps` the search of a request goes on until it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.methods.closed_form.keys import bare_rows
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_loss import TargetLoss
from errata.models.hooks import Site, frozen
from errata.models.layerwise import read_at
from errata.models.precision import computing, ran_out_of_memory

HOLDS = 0.5
"""Probability of every target token, in every context, at which a target holds."""


@dataclass(frozen=True)
class Targets:
    """The result of a search, in the order of the requests."""

    initial: Tensor
    """h₀: (n, d), float32."""
    delta: Tensor
    """δ: (n, d), float32."""
    losses: tuple[Tensor, ...]
    """Per request (evaluations, 4): total, NLL, weighted KL, weighted decay; float64."""
    at_once: int | None = None
    """Requests searched together at the end, fewer than requested where memory ran out; None
    where nothing was searched."""
    least: Tensor | None = None
    """(n,) the smallest probability of a target token in any context at the end of the search;
    None where unknown."""

    @property
    def values(self) -> Tensor:
        """h₀ + δ: (n, d)."""
        return self.initial + self.delta

    def pick(self, indices: Sequence[int]) -> Targets:
        """Return the targets of some requests."""
        chosen = list(indices)
        return Targets(
            self.initial[chosen],
            self.delta[chosen],
            tuple(self.losses[i] for i in chosen),
            self.at_once,
            None if self.least is None else self.least[chosen],
        )

    @property
    def failed(self) -> tuple[int, ...]:
        """The indices of the requests whose target does not hold."""
        least = () if self.least is None else self.least.tolist()
        return tuple(i for i, probability in enumerate(least) if probability < HOLDS)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name, to be stored."""
        counts = [len(trace) for trace in self.losses]
        named = {
            "initial": self.initial,
            "delta": self.delta,
            "losses": torch.cat([torch.empty(0, 4, dtype=torch.float64), *self.losses]),
            "evaluations": torch.tensor(counts),
        }
        if self.least is not None:
            named["least"] = self.least
        return named if self.at_once is None else {**named, "at_once": torch.tensor(self.at_once)}

    @classmethod
    def of(cls, named: Mapping[str, Tensor], device: torch.device) -> Targets:
        """Return what `tensors` returned, on a device."""
        at_once = named.get("at_once")
        return cls(
            named["initial"].to(device),
            named["delta"].to(device),
            tuple(named["losses"].split(named["evaluations"].tolist())),
            None if at_once is None else int(at_once),
            named.get("least"),
        )


def search_targets(
    model: PreTrainedModel,
    rewrites: Sequence[Rewrite],
    block: int,
    site: Site,
    settings: Search,
    *,
    at_once: int = 16,
    budget: int = 4096,
) -> Targets:
    """Search the target values of all requests at `block`.

    `site` is where h₀ is read: the block's output (MEMIT) or its MLP's (ROME). δ is added
    there, which in a pre-norm block equals adding it to the block's output. Requests are sorted
    by length and searched `at_once` at a time, half as many whenever memory runs out; a forward
    pass has at most `budget` tokens. Neither changes results beyond rounding.
    """
    with frozen(model), computing(settings.precision, model):
        initial = read_at(model, bare_rows(rewrites), [site])[0].float()
        lengths = [len(rewrite.rows[0].ids) - rewrite.rows[0].position for rewrite in rewrites]
        order = sorted(range(len(rewrites)), key=lambda i: (lengths[i], i))
        delta, least = torch.zeros_like(initial), torch.ones(len(initial))
        losses: list[Tensor] = [torch.empty(0, 4)] * len(rewrites)
        start = 0
        while start < len(order):
            group = order[start : start + at_once]
            done = _searched(
                model, [rewrites[i] for i in group], block, initial[group], settings, budget
            )
            if done is None:
                at_once = _fewer(model, len(group))
                continue
            delta[group], least[group], start = done[0], done[2], start + len(group)
            for i, trace in zip(group, done[1], strict=True):
                losses[i] = trace
    return Targets(initial, delta, tuple(losses), at_once, least)


def _searched(*search: Any) -> tuple[Tensor, list[Tensor], Tensor] | None:
    """Search a group; None when memory ran out, after everything is released."""
    try:
        return _search_group(*search)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
    return None


def _fewer(model: PreTrainedModel, count: int) -> int:
    """Return half as many requests; raises `ErrataError` when a single one does not fit."""
    if count == 1:
        raise ErrataError(
            "memory ran out while searching a single request",
            "shorten its prompt, use fewer or shorter prefixes, or --precision autocast",
        )
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return count // 2


def _search_group(
    model: PreTrainedModel,
    rewrites: Sequence[Rewrite],
    block: int,
    initial: Tensor,
    settings: Search,
    budget: int,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Search a group of requests; return δ (n, d), the losses of each, and `least` (n,)."""
    texts = TargetLoss(model, rewrites, block, settings, budget)
    delta = torch.zeros_like(initial, requires_grad=True)
    found, least = torch.zeros_like(initial), torch.ones(len(initial))
    traces: list[list[Tensor]] = [[] for _ in rewrites]
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    active = list(range(len(rewrites)))
    scale = initial.norm(dim=1)  # (n,)
    for step in range(settings.most_steps):
        last = step == settings.most_steps - 1
        optimizer.zero_grad(set_to_none=False)
        with torch.set_grad_enabled(not last):
            nll, kl = texts.losses(delta, active)
            kl = settings.kl_weight * kl
            decay = settings.weight_decay * delta.norm(dim=1) / scale**2
            loss = nll + kl + decay
        if not last:
            loss.sum().backward()
        row = torch.stack([loss, nll, kl, decay], dim=1).detach().cpu().double()
        _check_finite(row[active], delta[active], step)
        for i in active:
            traces[i].append(row[i])
        found[active] = delta.detach()[active]
        assert texts.least is not None
        least[active] = texts.least.cpu()[active]
        active = [i for i in active if not _done(settings, step, row[i, 0], least[i])]
        if last or not active:
            break
        optimizer.step()
        with torch.no_grad():
            length = delta.norm(dim=1)
            longest = settings.clamp * scale
            shrink = torch.where(length > longest, longest / length, torch.ones_like(length))
            delta.mul_(shrink[:, None])
    return found, [torch.stack(trace) for trace in traces], least


def _done(settings: Search, step: int, loss: Tensor, least: Tensor) -> bool:
    """Whether a request's search ends after this evaluation."""
    enough = bool(loss < settings.stop_at) or step >= settings.steps - 1
    return enough and (settings.max_steps is None or bool(least >= HOLDS))


def _check_finite(row: Tensor, delta: Tensor, step: int) -> None:
    """Raise `ErrataError` when the loss or δ of a request is NaN or infinite."""
    if row.isfinite().all() and delta.isfinite().all():
        return
    if step == 0:
        raise ErrataError(
            "the loss is not finite before any change",
            "the model's weights or activations contain NaN or infinity; try --dtype float32",
        )
    raise ErrataError(
        f"the target search diverged: its loss is not finite after {step} steps",
        "lower the learning rate or the clamp (--learning-rate, --clamp)",
    )
