"""`Case`: an edit request with the prompts on which the edited model is evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from errata.core.settings import Settings
from errata.data.request import EditRequest


class Probe(Settings):
    """A prompt with the answer that an edit should preserve."""

    prompt: str
    """The text before the answer."""
    answer: str
    """The correct answer, without a leading space."""


def _is_empty(value: object) -> bool:
    """Whether a value is empty, so that it is left out of records as before it existed."""
    return not value


class Question(Settings):
    """A prompt with the answers that are right, if any is known.

    In files, `answer` may stand for a single one, and a string for a prompt without answers.
    """

    prompt: str
    """The text before the answer."""
    answers: tuple[str, ...] = Field((), exclude_if=_is_empty)
    """Right answers, without a leading space; the first one is the canonical form."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"prompt": given}
        if isinstance(given, Mapping) and isinstance(given.get("answer"), str):
            others = {key: value for key, value in given.items() if key != "answer"}
            return {"answers": (given["answer"],), **others}
        return given


class Criterion(Settings):
    """A test of what else an edit changes or keeps, such as KnowEdit's `reasoning`."""

    axis: str
    """What is tested, as the dataset's authors name it, in lower case with underscores."""
    questions: tuple[Question, ...]
    """What is asked of the edited model."""
    passes: Literal["each", "any", "all"] = "each"
    """What counts: each question by itself, or the test if any or all of its answers are right."""
    conditions: tuple[Question, ...] = Field((), exclude_if=_is_empty)
    """Questions that the unedited model must answer for the test to count."""


class Case(Settings):
    """One edit and the prompts that measure its effects and side effects."""

    request: EditRequest
    """The edit."""
    target_true: str | None = None
    """The original answer, also the correct answer of the neighbours."""
    paraphrases: tuple[str, ...] = ()
    """Rephrasings of the prompt; the answer should be the new target."""
    neighbours: tuple[str, ...] = ()
    """Prompts about other subjects with the same original answer, which should not change."""
    neighbour_answers: tuple[str, ...] = ()
    """The neighbours' correct answers, if they differ; `target_true` by default."""
    same_subject: tuple[Probe, ...] = ()
    """Other facts about the subject, which the edit should not change."""
    generation_prompts: tuple[str, ...] = ()
    """Prompts for free generation about the subject."""
    attribute_prompts: tuple[str, ...] = ()
    """Prompts about subjects whose original answer is the new target."""
    references: tuple[str, ...] = ()
    """Texts about such subjects; generated text should resemble them (consistency)."""
    essence: tuple[str, ...] = ()
    """Reference texts about the edited subject; their perplexity should stay low."""
    criteria: tuple[Criterion, ...] = Field((), exclude_if=_is_empty)
    """Further tests of the dataset: what follows from the edit, and what does not."""
    probes: tuple[Question, ...] = Field((), exclude_if=_is_empty)
    """Questions of one's own, shown before and after the edit, and scored if answers are given."""

    @model_validator(mode="after")
    def _one_answer_each(self) -> Self:
        if self.neighbour_answers and len(self.neighbour_answers) != len(self.neighbours):
            raise ValueError(
                f"has {len(self.neighbours)} neighbours but "
                f"{len(self.neighbour_answers)} neighbour_answers"
            )
        return self

    @property
    def fact(self) -> str:
        """The edit in words, on one line."""
        text = " ".join((self.request.text + self.request.answer).split())
        return text if text.endswith((".", "\u3002", "!", "?")) else f"{text}."

    @property
    def id(self) -> str | int | None:
        """The request's identifier."""
        return self.request.id


def cases_digest(cases: Iterable[Case]) -> str:
    """Return a SHA-256 hash of all fields of all cases, in order."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(case.model_dump_json().encode() + b"\n")
    return digest.hexdigest()
