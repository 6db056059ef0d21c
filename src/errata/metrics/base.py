"""`Metric`: what is asked about a case, how the outcome is stored, how outcomes become scores.

A metric yields one *outcome* per case, and from the outcomes of all cases one or more *scores*
with 95 % confidence intervals. A metric that compares likelihoods of given answers extends
`LikelihoodMetric` and only names its (prompt, answer) pairs: the pairs of all such metrics run in
one set of batches, and a pair that two metrics share runs once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, model_validator

from errata.core.settings import Settings, is_none, is_true
from errata.data.case import Case
from errata.metrics.likelihood import Likelihood, likelihoods
from errata.metrics.scores import Amount, Score, grouped_mean, grouped_share
from errata.patches.chat_form import ChatForm
from errata.patches.edited_model import EditedModel

Unit = Literal["share", "amount"]
"""What a score is: a share from 0 to 1, shown in percent, or an amount, shown as it is."""
Outcome = TypeVar("Outcome")
LARGEST = 1e100
"""Upper bound of any stored number, a broken model's perplexity included: squares stay finite."""


class EvalSettings(Settings):
    """Settings of an evaluation."""

    title: ClassVar[str] = "the evaluation"

    generate: bool = False
    """Also generate text: greedy answers to all prompts, and sampled texts about the subjects."""
    max_new_tokens: int = 32
    """Maximum length of a generated answer, in tokens."""
    text_tokens: int = 100
    """Length of the sampled texts, in tokens, prompt included."""
    seed: int = 0
    """Random seed of the sampled texts."""
    template: Literal["none", "chat"] | None = Field(None, exclude_if=is_none)
    """Ask prompts as plain text, or in the tokenizer's chat template (default: as the model is
    asked)."""
    system: str | None = Field(None, exclude_if=is_none)
    """System message of the chat (default: the template's own)."""

    controls: bool = Field(True, exclude_if=is_true)
    """Also ask the unedited model with the fact in the prompt, one line before it."""

    @model_validator(mode="after")
    def _system_in_chat(self) -> Self:
        if self.system is not None and self.template != "chat":
            raise ValueError("a system message needs template: chat")
        return self

    def form(self, edited: EditedModel) -> ChatForm | None:
        """Return the form in which prompts are asked; None for plain text."""
        if self.template is None:
            return edited.chat
        return ChatForm(self.system) if self.template == "chat" else None


class Pair(NamedTuple):
    """A prompt, and an answer whose likelihood is measured after it."""

    prompt: str
    answer: str
    """With its leading separator, as in " Rome"."""


class Metric(ABC, Generic[Outcome]):
    """One measurement on cases; a new one is a file with a subclass and a line in `METRICS`.

    The defaults suit an outcome that is a number or a yes/no value, or a list of them, and
    one score that has the metric's name: only `score` must be written.
    """

    name: ClassVar[str]
    """The metric's key in JSON and in tables, unique."""
    title: ClassVar[str]
    """Heading of the table in which its scores are shown; metrics of one title share a table."""
    unit: ClassVar[Unit] = "share"

    @property
    def units(self) -> Mapping[str, Unit]:
        """The unit of each of the metric's scores that is not a share, by the score's name."""
        return {self.name: self.unit} if self.unit != "share" else {}

    @property
    def comparison(self) -> Mapping[str, Sequence[str]]:
        """The scores shown side by side for several runs, by the heading of their table."""
        return {self.title: (self.name,)}

    def prepared(self, cases: Sequence[Case], settings: EvalSettings) -> Self | None:
        """Return the metric set up for a run over `cases`; None if the run does not include it."""
        return self

    @abstractmethod
    def score(
        self, edited: EditedModel, cases: Sequence[Case], first: int = 0
    ) -> Sequence[Outcome]:
        """Return the outcome of each case.

        `first` is the position of `cases[0]` among all cases of the run, to derive seeds from.
        """

    def record(self, outcome: Outcome) -> dict[str, Any]:
        """Return the keys that an outcome adds to the JSON record of its case."""
        return {self.name: outcome}

    def read(self, record: Mapping[str, Any]) -> Outcome | None:
        """Return the outcome that `record` stored, None if there is none.

        Raises `ValueError` or another error of `UNREADABLE` for values that it cannot have stored.
        """
        found: Outcome | None = record.get(self.name)
        for value in [] if found is None else _values(found):
            if not isinstance(value, bool):
                number(value)
        return found

    def summarise(self, outcomes: Sequence[Outcome]) -> dict[str, Score]:
        """Return the metric's scores by name, without those for which no case has a value."""
        groups = [_values(outcome) for outcome in outcomes]
        binary = all(isinstance(value, bool) for group in groups for value in group)
        score = grouped_share(groups) if binary else grouped_mean(groups)
        if score is None:
            return {}
        return {self.name: in_unit(self.unit, score)}


class LikelihoodMetric(Metric[Outcome]):
    """A metric computed from likelihoods of given answers after given prompts (teacher forcing)."""

    title: ClassVar[str] = "teacher-forced"

    @abstractmethod
    def pairs(self, case: Case) -> Sequence[Pair]:
        """Return the pairs whose likelihood the metric needs for a case."""

    @abstractmethod
    def outcome(self, case: Case, found: Sequence[Likelihood]) -> Outcome:
        """Return the outcome of a case from the likelihoods of its pairs, in their order."""

    def score(
        self, edited: EditedModel, cases: Sequence[Case], first: int = 0
    ) -> Sequence[Outcome]:
        """Return the outcome of each case."""
        (found,) = score_together([self], edited, cases)
        return found


def score_together(
    metrics: Sequence[LikelihoodMetric[Any]], edited: EditedModel, cases: Sequence[Case]
) -> list[list[Any]]:
    """Return, per metric, the outcome of each case; all pairs run in one set of batches."""
    asked = [[list(metric.pairs(case)) for case in cases] for metric in metrics]
    flat = [pair for of_metric in asked for pairs in of_metric for pair in pairs]
    found = iter(likelihoods(edited, flat))
    return [
        [
            metric.outcome(case, [next(found) for _ in pairs])
            for case, pairs in zip(cases, of_metric, strict=True)
        ]
        for metric, of_metric in zip(metrics, asked, strict=True)
    ]


def _values(outcome: Any) -> list[Any]:
    """Return the values of an outcome that is a value or a list of values."""
    return list(outcome) if isinstance(outcome, list | tuple) else [outcome]


def in_unit(unit: Unit, score: Score) -> Score:
    """Return a score in the form of its unit."""
    return Amount(**score.model_dump()) if unit == "amount" else score


def number(value: Any) -> float:
    """Return a stored number as a float; raises `ValueError` for anything else, NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def is_nan(value: Any) -> bool:
    """Whether a stored value is NaN."""
    return isinstance(value, float) and math.isnan(value)
