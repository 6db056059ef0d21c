"""What an edit did and what it broke: teacher-forced scores on CounterFact's prompts.

Per prompt and target the mean NLL per target token (nats), and whether every target token is
the likeliest. Success of the edit and its paraphrases: the new target is likelier than the
true one; of a neighbour: the true one is. Prompt and target are encoded together, as the
tokenizer would read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.case import Case
from errata.hooks import frozen, logits_at
from errata.keys import TOKENS_AT_ONCE
from errata.report import Score, share
from errata.tokens import batches_by_length, pad_right, split_target

KINDS = ("efficacy", "paraphrase", "neighbourhood")
"""What is scored: the edit's own prompt, its paraphrases, its neighbours."""


class Likelihood(NamedTuple):
    """How a model takes an answer after a prompt."""

    nll: float
    """Mean negative log-likelihood per answer token, nats."""
    likeliest: bool
    """Whether every answer token is the argmax, given those before it."""


class PromptScore(NamedTuple):
    """One prompt of a case, with the new and the true target as its answer."""

    kind: str
    prompt: str
    new: Likelihood
    true: Likelihood | None

    @property
    def success(self) -> bool | None:
        """Whether the right target is the likelier one; None when the true target is not known."""
        if self.true is None:
            return None
        return (
            self.true.nll < self.new.nll
            if self.kind == "neighbourhood"
            else self.new.nll < self.true.nll
        )

    @property
    def accurate(self) -> bool | None:
        """Whether the right target is what the model would say."""
        right = self.true if self.kind == "neighbourhood" else self.new
        return None if right is None else right.likeliest


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    budget: int = TOKENS_AT_ONCE,
) -> list[Likelihood]:
    """Score (prompt, answer) pairs, the answer with its separator, in batches by length."""
    coded = [split_target(tokenizer, prompt, answer) for prompt, answer in pairs]
    found: list[Likelihood | None] = [None] * len(pairs)
    with frozen(model):
        for batch in batches_by_length([len(p) + len(t) - 1 for p, t in coded], budget):
            rows = [coded[i][0] + coded[i][1][:-1] for i in batch]
            ids = pad_right(rows, model.device)
            keep = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
            for line, i in enumerate(batch):
                keep[line, len(coded[i][0]) - 1 : len(rows[line])] = True
            logits = logits_at(
                model, keep, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).float()
            targets = torch.tensor([t for i in batch for t in coded[i][1]], device=model.device)
            nll = cross_entropy(logits, targets, reduction="none").cpu().double()
            right = (logits.argmax(-1) == targets).cpu()
            start = 0
            for i in batch:
                end = start + len(coded[i][1])
                found[i] = Likelihood(float(nll[start:end].mean()), bool(right[start:end].all()))
                start = end
    return [likelihood for likelihood in found if likelihood is not None]


def score_cases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]
) -> list[list[PromptScore]]:
    """Score every prompt of every case, both targets, in one set of batches."""
    asked = [
        (kind, prompt)
        for case in cases
        for kind, prompts in zip(
            KINDS, ((case.request.text,), case.paraphrases, case.neighbours), strict=True
        )
        for prompt in prompts
    ]
    counts = [1 + len(case.paraphrases) + len(case.neighbours) for case in cases]
    owners = [case for case, count in zip(cases, counts, strict=True) for _ in range(count)]
    pairs = [
        (prompt, case.request.separator + target)
        for (_, prompt), case in zip(asked, owners, strict=True)
        for target in (case.request.target, case.target_true)
        if target is not None
    ]
    scored = iter(likelihoods(model, tokenizer, pairs))
    rows = [
        PromptScore(
            kind, prompt, next(scored), next(scored) if case.target_true is not None else None
        )
        for (kind, prompt), case in zip(asked, owners, strict=True)
    ]
    lines = iter(rows)
    return [[next(lines) for _ in range(count)] for count in counts]


def summarise(scored: Sequence[Sequence[PromptScore]]) -> dict[str, Score]:
    """Return shares over all prompts of a kind: `efficacy` … (success) and `efficacy_accuracy` …"""
    summary = {}
    for kind in KINDS:
        rows = [row for case in scored for row in case if row.kind == kind]
        for name, outcomes in (
            (kind, [row.success for row in rows]),
            (f"{kind}_accuracy", [row.accurate for row in rows]),
        ):
            score = share([outcome for outcome in outcomes if outcome is not None])
            if score is not None:
                summary[name] = score
    return summary
