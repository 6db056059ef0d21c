"""What an edit did and what it broke: teacher-forced scores on the prompts of cases.

Per prompt and target the mean NLL per target token (nats), and which target tokens are the
likeliest. CounterFact's way (arXiv 2202.05262, section 3.4), where the true target is known:

- success: the right target is likelier than the other one: the new target for the edit and
  its paraphrases, the true one for neighbours; `score` is the harmonic mean of the three,
- magnitude: by how much, P(right) - P(wrong), with P the geometric mean over target tokens,
- accuracy: every token of the right target is the argmax.

zsRE's way (2210.07229, section 5.2), where there is only the right answer: the share of its
tokens that are the argmax, and accuracy, which is exact match. Each is a figure of its own;
what a model would *write* is another question (see `generate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.data.case import Case
from errata.metrics.likelihood import Likelihood, likelihoods
from errata.metrics.scores import Score, grouped_mean, grouped_share, harmonic_mean

PROMPT_KINDS = ("efficacy", "paraphrase", "neighbourhood")
"""What every case is asked: the edit's own prompt, its paraphrases, its neighbours."""
SAME_SUBJECT = "same_subject"
"""The edited subject's other facts, for datasets that have them."""


Value = TypeVar("Value")


class Prompt(NamedTuple):
    """A prompt of a case, with the answers that are compared there."""

    kind: str
    text: str
    new: str
    true: str | None
    """What should go on being answered; None where that is not known."""
    own: bool
    """Whether `true` is this prompt's own answer, so that `new` is no rival of it."""

    @property
    def right(self) -> str | None:
        """The answer that counts here."""
        return self.new if self.kind in ("efficacy", "paraphrase") else self.true


class PromptScore(NamedTuple):
    """One prompt of a case, with the new and the true target as its answer."""

    kind: str
    prompt: str
    new: Likelihood
    true: Likelihood | None
    own: bool = False
    """Whether `true` is this prompt's own answer, so that the two are not compared."""

    @property
    def right(self) -> Likelihood | None:
        """How the model takes the answer that counts here."""
        return self.new if self.kind in ("efficacy", "paraphrase") else self.true

    @property
    def success(self) -> bool | None:
        """Whether the right target is the likelier one; None where nothing is compared."""
        if self.true is None or self.own:
            return None
        right, wrong = (self.new, self.true) if self.right is self.new else (self.true, self.new)
        return right.nll < wrong.nll

    @property
    def magnitude(self) -> float | None:
        """P(right) - P(wrong); None where nothing is compared."""
        if self.true is None or self.own:
            return None
        difference = math.exp(-self.new.nll) - math.exp(-self.true.nll)
        return difference if self.right is self.new else -difference

    @property
    def accurate(self) -> bool | None:
        """Whether the right target is what the model would say, token for token."""
        right = self.right
        return right.likeliest if right is not None and right.correct else None

    @property
    def tokens(self) -> tuple[bool, ...] | None:
        """Which tokens of the right answer are the argmax; None where targets are compared."""
        return None if self.right is None or self.success is not None else self.right.correct


def record_of(score: PromptScore) -> dict[str, Any]:
    """Return what is kept of one prompt, for JSON."""
    return {
        "kind": score.kind,
        "prompt": score.prompt,
        "new": score.new._asdict(),
        "true": None if score.true is None else score.true._asdict(),
        "own": score.own,
        "success": score.success,
    }


def score_of(record: Mapping[str, Any]) -> PromptScore:
    """Return the prompt that `record_of` kept."""
    new, true = (
        None if kept is None else Likelihood(**{**kept, "correct": tuple(kept["correct"])})
        for kept in (record["new"], record["true"])
    )
    assert new is not None, record
    return PromptScore(record["kind"], record["prompt"], new, true, record["own"])


Scored = Sequence[Sequence[PromptScore]]
"""Per case, its prompts."""


def prompts_of(case: Case) -> list[Prompt]:
    """Return everything that is asked about a case."""
    new, true = case.request.target, case.target_true
    asked = [Prompt("efficacy", case.request.text, new, true, False)]
    asked += [Prompt("paraphrase", text, new, true, False) for text in case.paraphrases]
    answers = case.neighbour_answers or (true,) * len(case.neighbours)
    asked += [
        Prompt("neighbourhood", text, new, answer, answer != true)
        for text, answer in zip(case.neighbours, answers, strict=True)
    ]
    asked += [
        Prompt(SAME_SUBJECT, fact.prompt, new, fact.answer, True) for fact in case.same_subject
    ]
    return asked


def score_cases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]
) -> list[list[PromptScore]]:
    """Score every prompt of every case, both targets, in one set of batches."""
    asked = [prompts_of(case) for case in cases]
    pairs = [
        (prompt.text, case.request.separator + target)
        for case, prompts in zip(cases, asked, strict=True)
        for prompt in prompts
        for target in (prompt.new, prompt.true)
        if target is not None
    ]
    found = iter(likelihoods(model, tokenizer, pairs))
    return [
        [
            PromptScore(
                prompt.kind,
                prompt.text,
                next(found),
                None if prompt.true is None else next(found),
                prompt.own,
            )
            for prompt in prompts
        ]
        for prompts in asked
    ]


def summarise(scored: Scored) -> dict[str, Score]:
    """Return every figure by name; those that nothing was asked for are absent.

    `efficacy`, `paraphrase`, `neighbourhood` are shares of success, with `_magnitude`,
    `_accuracy` and `_tokens` beside them, `score` their harmonic mean. As published, a case's
    prompts are averaged first, then cases. The interval of `score` is the harmonic mean of
    the three intervals' ends, which is rather too wide than too narrow.
    """
    summary: dict[str, Score] = {}
    for kind in (*PROMPT_KINDS, SAME_SUBJECT):
        rows = [[row for row in case if row.kind == kind] for case in scored]
        _put(summary, kind, grouped_share(_given(rows, lambda row: row.success)))
        _put(summary, f"{kind}_magnitude", grouped_mean(_given(rows, lambda row: row.magnitude)))
        _put(summary, f"{kind}_accuracy", grouped_share(_given(rows, lambda row: row.accurate)))
        tokens = [[hit for row in case for hit in row.tokens or ()] for case in rows]
        _put(summary, f"{kind}_tokens", grouped_share(tokens))
    if all(kind in summary for kind in PROMPT_KINDS):
        parts = [summary[kind] for kind in PROMPT_KINDS]
        value, low, high = (
            harmonic_mean([getattr(part, end) for part in parts])
            for end in ("value", "low", "high")
        )
        summary["score"] = Score(value=value, low=low, high=high, n=len(scored))
    return summary


def _given(rows: Scored, figure: Callable[[PromptScore], Value | None]) -> list[list[Value]]:
    """Return a figure of every prompt that has it, by case."""
    found = [[figure(row) for row in case] for case in rows]
    return [[value for value in case if value is not None] for case in found]


def _put(summary: dict[str, Score], name: str, score: Score | None) -> None:
    if score is not None:
        summary[name] = score
