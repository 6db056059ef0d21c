"""The loss of a target search, for many requests at once.

The formula is that of `target_search`. Texts with about as many tokens from the edited position
on share a forward pass, which starts at the edited block and position (`models.suffix_run`);
one call of the language-model head serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.models.families import family_of
from errata.models.hooks import logits_of
from errata.models.prefix_cache import WORTH_A_PASS, worth_sharing
from errata.models.suffix_run import SuffixRun
from errata.models.tokens import TokenRow, batches_by_length


class _Line(NamedTuple):
    """One text of a request; the one without targets is the essence prompt."""

    owner: int
    row: TokenRow
    share: float
    """Weight of each of the text's tokens in the mean NLL."""


def _lines(rewrites: Sequence[Rewrite]) -> list[_Line]:
    """Return all texts with targets, then all essence prompts."""
    answers = [
        _Line(i, row, 1 / (len(row.targets) * len(rewrite.rows)))
        for i, rewrite in enumerate(rewrites)
        for row in rewrite.rows
    ]
    return answers + [_Line(i, rewrite.essence, 0.0) for i, rewrite in enumerate(rewrites)]


def tokens_searched(rewrites: Sequence[Rewrite], budget: int) -> tuple[int, int, int]:
    """Return the tokens that a search runs once, and the tokens and logits of each step."""
    lines = _lines(rewrites)
    left = [len(line.row.ids) for line in lines]
    starts = [line.row.ids[: line.row.position] for line in lines]
    groups = worth_sharing(starts, sum(left))
    once = len(groups) * max((length for length, _ in groups), default=0)
    for length, members in groups:
        for i in members:
            left[i] -= length
    passes = _together(lines, range(len(lines)), budget)
    once += sum(len(each) * max(left[i] for i in each) for each in passes)
    step = sum(len(each) * max(_suffix(lines[i].row) for i in each) for each in passes)
    return once, step, sum(max(1, len(line.row.targets)) for line in lines)


def _suffix(row: TokenRow) -> int:
    """Return the number of tokens from a row's position on."""
    return len(row.ids) - row.position


class TargetLoss:
    """The loss of some requests as a function of δ (see the module).

    The rows of requests that are done are dropped.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rewrites: Sequence[Rewrite],
        block: int,
        settings: Search,
        budget: int,
    ) -> None:
        last = family_of(model).block_count(model) - 1
        loss_block = last if settings.loss_block is None else max(settings.loss_block, block)
        lines = _lines(rewrites)
        kinds = [range(len(lines))]
        if loss_block < last:  # the essence is always read after the last block
            answers = len(lines) - len(rewrites)
            kinds = [range(answers), range(answers, len(lines))]
        past = SuffixRun.shared_prefixes(model, [line.row for line in lines], block)
        self.model = model
        self.passes = [
            _Pass(
                SuffixRun.prepare(
                    model, [lines[i].row for i in chosen], block, past.select(torch.tensor(chosen))
                ),
                [lines[i] for i in chosen],
                loss_block if kind is kinds[0] else last,
            )
            for kind in kinds
            for chosen in _together(lines, kind, budget)
        ]
        self.before: Tensor | None = None
        """(n, vocabulary) log-probabilities after the essence prompt at the first evaluation."""
        self.least: Tensor | None = None
        """(n,) at the last evaluation, the smallest probability of a target token in any context;
        1 where not active."""

    def losses(self, delta: Tensor, active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return each request's mean NLL and KL(now ‖ before): (n,) each, 0 where not active."""
        for part in self.passes:
            part.drop_all_but(active)
        passes = self.passes = [part for part in self.passes if len(part.owner)]
        owner, target, share = (
            torch.cat(each) for each in zip(*(part.predicted() for part in passes), strict=True)
        )
        order = torch.argsort((share == 0).int(), stable=True)  # answers first, then essences
        hidden = torch.cat([part.hidden(delta) for part in passes])[order]  # (predicted, d)
        answers = int((share != 0).sum())
        owner, whose = owner[order].split([answers, len(order) - answers])
        logits = logits_of(self.model, hidden)
        if self.before is None:
            now = logits[answers:].detach().float().log_softmax(-1)
            self.before = now.new_zeros(len(delta), now.shape[1]).index_copy(0, whose, now)
        surprise, divergence = _Losses.apply(logits, target[order][:answers], self.before[whose])
        none = delta.new_zeros(len(delta))
        nll = none.index_add(0, owner, surprise * share[order][:answers])
        most = torch.zeros_like(none).scatter_reduce(0, owner, surprise.detach(), "amax")
        self.least = (-most).exp()
        return nll, none.index_add(0, whose, divergence)


class _Losses(torch.autograd.Function):
    """-log p(target) of the first rows of logits, KL(now ‖ before) of the others.

    The gradients p - 1[target] and p (log p - log p_before - KL) need one pass over the
    vocabulary each, where composed operations take many.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.float().log_softmax(-1)  # (answers + essences, vocabulary)
        now = log_p[len(target) :]
        divergence = (now.exp() * (now - before)).sum(-1)
        ctx.save_for_backward(log_p, target, before, divergence)
        ctx.dtype = logits.dtype
        return -log_p[: len(target)].gather(1, target[:, None])[:, 0], divergence

    @staticmethod
    def backward(ctx: Any, to_surprise: Tensor, to_divergence: Tensor) -> tuple[Tensor, None, None]:
        log_p, target, before, divergence = ctx.saved_tensors
        count = len(target)
        gradient = log_p.exp()
        gradient[:count] *= to_surprise[:, None]
        gradient[:count].scatter_add_(1, target[:, None], -to_surprise[:, None])
        gradient[count:] *= log_p[count:].sub(before).sub_(divergence[:, None])
        gradient[count:] *= to_divergence[:, None]
        return gradient.to(ctx.dtype), None, None


class _Pass:
    """Texts that share a forward pass, and the positions whose predictions the loss uses."""

    def __init__(self, tail: SuffixRun, lines: Sequence[_Line], last_block: int) -> None:
        self.tail, self.last_block = tail, last_block
        device, shape = self.tail.ids.device, self.tail.ids.shape
        self.owner = torch.tensor([line.owner for line in lines], device=device)  # (rows,)
        self.keep = torch.zeros(shape, dtype=torch.bool, device=device)
        self.target = torch.zeros(shape, dtype=torch.long, device=device)
        self.share = torch.zeros(shape, device=device)
        for index, (_, row, share) in enumerate(lines):
            end = _suffix(row)
            assert len(row.targets) <= end, "a target is predicted before the edited position"
            if row.targets:
                places = slice(end - len(row.targets), end)
                self.target[index, places] = torch.tensor(row.targets, device=device)
                self.share[index, places] = share
            else:
                places = slice(end - 1, end)
            self.keep[index, places] = True

    def hidden(self, delta: Tensor) -> Tensor:
        """Return the final hidden states at the predicted positions: (predicted, d)."""
        return self.tail.hidden(self.tail.with_delta(delta[self.owner]), self.keep, self.last_block)

    def predicted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return owner, target and share of each predicted position: (predicted,)."""
        owner = self.owner[:, None].expand_as(self.keep)
        return owner[self.keep], self.target[self.keep], self.share[self.keep]

    def drop_all_but(self, active: Sequence[int]) -> None:
        """Drop the rows of requests that are done."""
        stay = torch.isin(self.owner, torch.tensor(active, device=self.owner.device))
        if stay.all():
            return
        self.tail = self.tail.select(stay)
        for name in ("owner", "keep", "target", "share"):
            setattr(self, name, getattr(self, name)[stay])


def _together(lines: Sequence[_Line], chosen: Iterable[int], budget: int) -> list[list[int]]:
    """Group the chosen texts by their tokens from the edited position on, within the budget.

    Groups are merged where padding the shorter one costs less than a pass of its own.
    """
    by_length: dict[int, list[int]] = {}
    for i in chosen:
        by_length.setdefault(_suffix(lines[i].row), []).append(i)
    groups: list[tuple[int, list[int]]] = []
    for length, members in sorted(by_length.items()):
        if groups and (length - groups[-1][0]) * len(groups[-1][1]) <= WORTH_A_PASS:
            members = groups.pop()[1] + members
        groups.append((length, members))
    return [
        [members[i] for i in batch]
        for _, members in groups
        for batch in batches_by_length([len(lines[i].row.ids) for i in members], budget)
    ]
