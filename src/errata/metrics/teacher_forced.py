"""Teacher-forced scores: efficacy, paraphrase, neighbourhood and same-subject prompts.

Per prompt and target: the mean negative log-likelihood (NLL) per target token in nats, and which
target tokens are the argmax. As in CounterFact (arXiv 2202.05262, section 3.4), where the true
target is known:

- success: the correct target is likelier than the other one: the new target for the edit and
  its paraphrases, the true one for neighbours; `score` is the harmonic mean of the three,
- magnitude: P(correct) - P(incorrect), with P the geometric mean over target tokens,
- accuracy: every token of the correct target is the argmax.

As in zsRE (2210.07229, section 5.2), where there is only a correct answer: the share of its
tokens that are the argmax, and accuracy, which is exact match. Each is a score of its own; what a
model would *generate* is a different question (see `generated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from errata.data.case import Case
from errata.metrics.base import LikelihoodMetric, Pair, number
from errata.metrics.likelihood import Likelihood
from errata.metrics.prompts import PROMPT_KINDS, SAME_SUBJECT, is_new_right, prompts_of
from errata.metrics.scores import Score, grouped_mean, grouped_share, harmonic_mean
from errata.patches.edited_model import EditedModel

Value = TypeVar("Value")


class PromptScore(NamedTuple):
    """The likelihoods of the new and the true target after one prompt of a case."""

    kind: str
    prompt: str
    new: Likelihood
    true: Likelihood | None
    own: bool = False
    """Whether `true` is this prompt's own answer, so that the two are not compared."""

    @property
    def right(self) -> Likelihood | None:
        """The likelihood of the correct answer."""
        return self.new if is_new_right(self.kind) else self.true

    @property
    def success(self) -> bool | None:
        """Whether the correct target is the likelier one; None if targets are not compared."""
        if self.true is None or self.own:
            return None
        right, wrong = (self.new, self.true) if self.right is self.new else (self.true, self.new)
        return right.nll < wrong.nll

    @property
    def magnitude(self) -> float | None:
        """P(correct) - P(incorrect); None if targets are not compared."""
        if self.true is None or self.own:
            return None
        difference = math.exp(-self.new.nll) - math.exp(-self.true.nll)
        return difference if self.right is self.new else -difference

    @property
    def accurate(self) -> bool | None:
        """Whether every token of the correct target is the argmax; None if it is unknown."""
        right = self.right
        return right.likeliest if right is not None and right.correct else None

    @property
    def tokens(self) -> tuple[bool, ...] | None:
        """Which tokens of the correct answer are the argmax; None if targets are compared."""
        return None if self.right is None or self.success is not None else self.right.correct


def record_of(score: PromptScore) -> dict[str, Any]:
    """Return a prompt's scores as JSON values."""
    return {
        "kind": score.kind,
        "prompt": score.prompt,
        "new": score.new._asdict(),
        "true": None if score.true is None else score.true._asdict(),
        "own": score.own,
        "success": score.success,
    }


def score_of(record: Mapping[str, Any]) -> PromptScore:
    """Return what `record_of` stored; raises an error of `UNREADABLE` for anything else."""
    new, true = (
        None if stored is None else Likelihood(**{**stored, "correct": tuple(stored["correct"])})
        for stored in (record["new"], record["true"])
    )
    if new is None:
        raise ValueError("no likelihood of the new target")
    return checked(PromptScore(record["kind"], record["prompt"], new, true, record["own"]))


def checked(score: PromptScore) -> PromptScore:
    """Return a score whose values have the right types; raises `ValueError` otherwise."""
    for each in (score.new, score.true):
        if each is not None and (
            number(each.nll) < -1
            or {type(hit) for hit in (each.likeliest, *each.correct)} != {bool}
        ):
            raise ValueError("not a likelihood")
    if type(score.own) is not bool or not isinstance(score.kind, str):
        raise ValueError("not a prompt")
    return score


class TeacherForced(LikelihoodMetric[list[PromptScore]]):
    """Both targets after every prompt of a case; the outcome is one `PromptScore` per prompt."""

    name: ClassVar[str] = "scores"

    @property
    def comparison(self) -> Mapping[str, Sequence[str]]:
        """Success with the harmonic mean; for datasets without true targets, tokens."""
        return {
            f"{self.title}, success": (*PROMPT_KINDS, "score"),
            f"{self.title}, tokens": tuple(f"{kind}_tokens" for kind in PROMPT_KINDS),
        }

    def pairs(self, case: Case) -> list[Pair]:
        """Return each prompt with the new target and, if known, with the true one."""
        return [
            Pair(prompt.text, case.request.separator + target)
            for prompt in prompts_of(case)
            for target in (prompt.new, prompt.true)
            if target is not None
        ]

    def outcome(self, case: Case, found: Sequence[Likelihood]) -> list[PromptScore]:
        """Return the scores of a case's prompts."""
        each = iter(found)
        return [
            PromptScore(
                prompt.kind,
                prompt.text,
                next(each),
                None if prompt.true is None else next(each),
                prompt.own,
            )
            for prompt in prompts_of(case)
        ]

    def record(self, outcome: list[PromptScore]) -> dict[str, Any]:
        """Return one object per prompt."""
        return {self.name: [record_of(score) for score in outcome]}

    def read(self, record: Mapping[str, Any]) -> list[PromptScore]:
        """Return the stored scores of a case's prompts, none if there are none."""
        return [score_of(prompt) for prompt in record.get(self.name) or ()]

    def summarise(self, outcomes: Sequence[Sequence[PromptScore]]) -> dict[str, Score]:
        """Return every score by name, without those that no prompt has a value for.

        `efficacy`, `paraphrase`, `neighbourhood` are shares of success, with `_magnitude`,
        `_accuracy` and `_tokens` beside them, `score` their harmonic mean. As published, a
        case's prompts are averaged first, then cases. The interval of `score` is the harmonic
        mean of the three intervals' ends, which is rather too wide than too narrow.
        """
        summary: dict[str, Score] = {}
        for kind in (*PROMPT_KINDS, SAME_SUBJECT):
            rows = [[row for row in case if row.kind == kind] for case in outcomes]
            tokens = [[hit for row in case for hit in row.tokens or ()] for case in rows]
            scores = {
                kind: grouped_share(_values(rows, lambda row: row.success)),
                f"{kind}_magnitude": grouped_mean(_values(rows, lambda row: row.magnitude)),
                f"{kind}_accuracy": grouped_share(_values(rows, lambda row: row.accurate)),
                f"{kind}_tokens": grouped_share(tokens),
            }
            summary |= {name: score for name, score in scores.items() if score is not None}
        if all(kind in summary for kind in PROMPT_KINDS):
            parts = [summary[kind] for kind in PROMPT_KINDS]
            value, low, high = (
                harmonic_mean([getattr(part, end) for part in parts])
                for end in ("value", "low", "high")
            )
            summary["score"] = Score(value=value, low=low, high=high, n=len(outcomes))
        return summary


def score_cases(edited: EditedModel, cases: Sequence[Case]) -> list[list[PromptScore]]:
    """Score every prompt of every case, both targets, in one set of batches."""
    return list(TeacherForced().score(edited, cases))


def summarise(scored: Sequence[Sequence[PromptScore]]) -> dict[str, Score]:
    """Return every score by name; see `TeacherForced.summarise`."""
    return TeacherForced().summarise(scored)


def _values(
    rows: Sequence[Sequence[PromptScore]], figure: Callable[[PromptScore], Value | None]
) -> list[list[Value]]:
    """Return a property of every prompt that has it, by case."""
    found = [[figure(row) for row in case] for case in rows]
    return [[value for value in case if value is not None] for case in found]
