"""Target values: what a block should say at the subject so that the model answers anew.

For each request a vector δ, added at one block and position, is found by gradient descent
(arXiv 2202.05262 eq. 4, 2210.07229 eq. 16) on

    mean over prefixes of NLL(target) / tokens  +  kl · KL(now ‖ before)  +  decay · ‖δ‖ / ‖h₀‖²

where the KL is that of the next-token distribution behind "{subject} is a" and h₀ is what
stands there without a prefix. Many requests are searched at once, each exactly as if alone:
rows share forward passes, only what δ can reach is computed (`tail`), a request leaves when
its loss is small enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from errata.errors import ErrataError
from errata.hooks import Site, frozen
from errata.keys import bare_rows, read_at
from errata.settings import Search
from errata.tail import Tail
from errata.tokens import Rewrite, batches_by_length


@dataclass(frozen=True)
class Targets:
    """What a search found, in the order of the requests."""

    initial: Tensor
    """h₀: (n, d), float32."""
    delta: Tensor
    """δ: (n, d), float32."""
    losses: tuple[Tensor, ...]
    """Per request (evaluations, 4): total, NLL, weighted KL, weighted decay; float64."""

    @property
    def values(self) -> Tensor:
        """h₀ + δ: (n, d)."""
        return self.initial + self.delta

    def pick(self, indices: Sequence[int]) -> Targets:
        """Return the targets of some requests."""
        chosen = list(indices)
        return Targets(
            self.initial[chosen], self.delta[chosen], tuple(self.losses[i] for i in chosen)
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

    `site` is what h₀ is read from: the block's output (MEMIT) or its MLP's (ROME); δ is
    added there, which in a pre-norm block is the same as adding it to the block's output.
    `at_once` requests are searched together, those of like length first; a forward pass
    holds at most `budget` tokens. Neither changes results beyond rounding.
    """
    with frozen(model):
        initial = read_at(model, bare_rows(rewrites), [site])[0].float()
        lengths = [len(rewrite.rows[0].ids) - rewrite.rows[0].position for rewrite in rewrites]
        order = sorted(range(len(rewrites)), key=lambda i: (lengths[i], i))
        delta = torch.zeros_like(initial)
        losses: list[Tensor] = [torch.empty(0, 4)] * len(rewrites)
        for start in range(0, len(order), at_once):
            group = order[start : start + at_once]
            found, traces = _search_group(
                model, [rewrites[i] for i in group], block, initial[group], settings, budget
            )
            delta[group] = found
            for i, trace in zip(group, traces, strict=True):
                losses[i] = trace
    return Targets(initial, delta, tuple(losses))


def _search_group(
    model: PreTrainedModel,
    rewrites: Sequence[Rewrite],
    block: int,
    initial: Tensor,
    settings: Search,
    budget: int,
) -> tuple[Tensor, list[Tensor]]:
    """Search some requests together; return δ (n, d) and their loss rows."""
    loss_block = None if settings.loss_block is None else max(settings.loss_block, block)
    parts = [
        _Answers(model, rewrites, rows, block, loss_block) for rows in _buckets(rewrites, budget)
    ]
    essence = _Essence(model, rewrites, block)
    delta = torch.zeros_like(initial, requires_grad=True)
    found = torch.zeros_like(initial)
    traces: list[list[Tensor]] = [[] for _ in rewrites]
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    active = list(range(len(rewrites)))
    scale = initial.norm(dim=1)  # (n,)
    for step in range(settings.steps):
        last = step == settings.steps - 1
        optimizer.zero_grad(set_to_none=False)
        with torch.set_grad_enabled(not last):
            nll = _accumulate(part.loss(delta, active) for part in parts)
            kl = _accumulate([settings.kl_weight * essence.divergence(delta, active)])
            decay = _accumulate([settings.weight_decay * delta.norm(dim=1) / scale**2])
        row = torch.stack([nll + kl + decay, nll, kl, decay], dim=1).cpu().double()
        _check_finite(row[active], delta[active], step)
        for i in active:
            traces[i].append(row[i])
        found[active] = delta.detach()[active]
        active = [i for i in active if row[i, 0] >= settings.stop_at]
        if last or not active:
            break
        optimizer.step()
        with torch.no_grad():
            length = delta.norm(dim=1)
            longest = settings.clamp * scale
            shrink = torch.where(length > longest, longest / length, torch.ones_like(length))
            delta.mul_(shrink[:, None])
    return found, [torch.stack(trace) for trace in traces]


def _check_finite(row: Tensor, delta: Tensor, step: int) -> None:
    """Raise `ErrataError` when the loss or δ of a request is NaN or infinite."""
    if row.isfinite().all() and delta.isfinite().all():
        return
    if step == 0:
        raise ErrataError(
            "the loss is not finite before anything was changed",
            "the model's weights or activations hold NaN or infinity; try --dtype float32",
        )
    raise ErrataError(
        f"the search ran away: its loss is not finite after {step} steps",
        "lower the learning rate or the clamp (--learning-rate, --clamp)",
    )


def _accumulate(losses: Iterable[Tensor]) -> Tensor:
    """Sum parts of the loss (n,), each sent back before the next is made, to save memory."""
    total: Tensor | None = None
    for loss in losses:
        if loss.requires_grad:
            loss.sum().backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def _buckets(rewrites: Sequence[Rewrite], budget: int) -> list[list[tuple[int, int]]]:
    """Group (request, row) pairs by equal suffix length, each group within the budget."""
    pairs = [(i, j) for i, rewrite in enumerate(rewrites) for j in range(len(rewrite.rows))]
    by_length: dict[int, list[tuple[int, int]]] = {}
    for i, j in pairs:
        row = rewrites[i].rows[j]
        by_length.setdefault(len(row.ids) - row.position, []).append((i, j))
    buckets = []
    for _, members in sorted(by_length.items()):
        sizes = [len(rewrites[i].rows[j].ids) for i, j in members]
        buckets += [[members[k] for k in batch] for batch in batches_by_length(sizes, budget)]
    return buckets


class _Answers:
    """Rows of equal suffix length and the targets that they should be followed by."""

    def __init__(
        self,
        model: PreTrainedModel,
        rewrites: Sequence[Rewrite],
        members: Sequence[tuple[int, int]],
        block: int,
        loss_block: int | None,
    ) -> None:
        rows = [rewrites[i].rows[j] for i, j in members]
        self.tail, self.loss_block = Tail.prepare(model, rows, block), loss_block
        device, suffix = self.tail.ids.device, self.tail.ids.shape[1]
        self.owner = torch.tensor([i for i, _ in members], device=device)  # (rows,)
        self.keep = torch.zeros(len(rows), suffix, dtype=torch.bool, device=device)
        self.target = torch.zeros(len(rows), suffix, dtype=torch.long, device=device)
        self.weight = torch.zeros(len(rows), suffix, device=device)
        for line, ((i, _), row) in enumerate(zip(members, rows, strict=True)):
            assert len(row.targets) <= suffix, "a target is predicted before the edited position"
            places = slice(suffix - len(row.targets), suffix)
            self.keep[line, places] = True
            self.target[line, places] = torch.tensor(row.targets, device=device)
            self.weight[line, places] = 1 / (len(row.targets) * len(rewrites[i].rows))

    def loss(self, delta: Tensor, active: Sequence[int]) -> Tensor:
        """Return the share of each request's mean NLL that these rows carry: (n,)."""
        kept = torch.isin(self.owner, torch.tensor(active, device=self.owner.device))
        if not kept.all():
            self._drop(kept)
        if not len(self.owner):
            return delta.new_zeros(len(delta))
        moved = self.tail.moved(delta[self.owner])
        logits = self.tail.run(moved, self.keep, self.loss_block)
        nll = cross_entropy(logits.float(), self.target[self.keep], reduction="none")
        owner = self.owner[:, None].expand_as(self.keep)[self.keep]
        return delta.new_zeros(len(delta)).index_add(0, owner, nll * self.weight[self.keep])

    def _drop(self, kept: Tensor) -> None:
        """Forget the rows of requests that are done."""
        self.tail = self.tail.select(kept)
        self.owner, self.keep = self.owner[kept], self.keep[kept]
        self.target, self.weight = self.target[kept], self.weight[kept]


class _Essence:
    """The next-token distribution behind "{subject} is a", which should stay as it was."""

    def __init__(self, model: PreTrainedModel, rewrites: Sequence[Rewrite], block: int) -> None:
        self.tail = Tail.prepare(model, [rewrite.essence for rewrite in rewrites], block)
        self.before: Tensor | None = (
            None  # (n, vocabulary) log-probabilities of the first evaluation
        )
        self.kept = torch.arange(len(rewrites), device=self.tail.ids.device)

    def divergence(self, delta: Tensor, active: Sequence[int]) -> Tensor:
        """Return KL(now ‖ before) per request: (n,)."""
        still = torch.isin(self.kept, torch.tensor(active, device=self.kept.device))
        if not still.all():
            self.tail, self.kept = self.tail.select(still), self.kept[still]
            self.before = None if self.before is None else self.before[still]
        keep = torch.ones_like(self.tail.ids, dtype=torch.bool)
        logits = self.tail.run(self.tail.moved(delta[self.kept]), keep)
        now = logits.float().log_softmax(-1)
        if self.before is None:
            self.before = now.detach()
        divergence = (now.exp() * (now - self.before)).sum(-1)
        return delta.new_zeros(len(delta)).index_add(0, self.kept, divergence)
