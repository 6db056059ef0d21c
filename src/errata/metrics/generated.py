"""Generated answers: whether greedy text after each prompt begins with, or contains, the answer.

Teacher forcing measures how likely an answer is *given* its beginning; users get generated text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

from errata.data.case import Case
from errata.metrics.base import EvalSettings, Metric
from errata.metrics.prompts import PROMPT_KINDS, SAME_SUBJECT, prompts_of
from errata.metrics.scores import Score, grouped_share
from errata.models.generation import continuations
from errata.patches.edited_model import EditedModel


class Answer(NamedTuple):
    """What a model generated after one prompt of a case."""

    kind: str
    prompt: str
    text: str
    begins: bool | None
    """Whether the text begins with the correct answer; None if that is unknown."""
    holds: bool | None
    """Whether the text contains the correct answer; None if that is unknown."""


def checked_answer(answer: Answer) -> Answer:
    """Return an answer whose fields have the right types; raises `ValueError` otherwise."""
    if not isinstance(answer.kind, str) or {type(answer.begins), type(answer.holds)} - {
        bool,
        type(None),
    }:
        raise ValueError("not an answer")
    return answer


@dataclass(frozen=True)
class Generated(Metric[Sequence[Answer]]):
    """Greedy answers to every prompt of a case; the outcome is one `Answer` per prompt."""

    name: ClassVar[str] = "answers"
    title: ClassVar[str] = "written by itself"
    max_new_tokens: int = 32

    @property
    def comparison(self) -> Mapping[str, Sequence[str]]:
        """Shares of texts that begin with the correct answer."""
        return {self.title: tuple(f"{kind}_generated" for kind in PROMPT_KINDS)}

    def prepared(self, cases: Sequence[Case], settings: EvalSettings) -> Self | None:
        """Take the length of answers from the settings; only runs that generate include this."""
        if not settings.generate:
            return None
        return replace(self, max_new_tokens=settings.max_new_tokens)

    def score(
        self, edited: EditedModel, cases: Sequence[Case], first: int = 0
    ) -> list[list[Answer]]:
        """Return the answers to each case's prompts."""
        return answer_cases(edited, cases, self.max_new_tokens)

    def record(self, outcome: Sequence[Answer]) -> dict[str, Any]:
        """Return one object per prompt."""
        return {self.name: [answer._asdict() for answer in outcome]}

    def read(self, record: Mapping[str, Any]) -> Sequence[Answer] | None:
        """Return the stored answers to a case's prompts, None if there are none."""
        if record.get(self.name) is None:
            return None
        return [checked_answer(Answer(**answer)) for answer in record[self.name]]

    def summarise(self, outcomes: Sequence[Sequence[Answer]]) -> dict[str, Score]:
        """Return, per kind, the share of texts that begin with the answer, and that contain it.

        Their names are `efficacy_generated`, `efficacy_generated_anywhere` and so on.
        """
        summary: dict[str, Score] = {}
        for kind in (*PROMPT_KINDS, SAME_SUBJECT):
            rows = [[row for row in case if row.kind == kind] for case in outcomes]
            begins = [[r.begins for r in case if r.begins is not None] for case in rows]
            holds = [[r.holds for r in case if r.holds is not None] for case in rows]
            scores = {
                f"{kind}_generated": grouped_share(begins),
                f"{kind}_generated_anywhere": grouped_share(holds),
            }
            summary |= {name: score for name, score in scores.items() if score is not None}
        return summary


def answer_cases(
    edited: EditedModel, cases: Sequence[Case], max_new_tokens: int = 32
) -> list[list[Answer]]:
    """Generate greedily after every prompt of every case, and search for the correct answer."""
    asked = [prompts_of(case) for case in cases]
    flat = [edited.rendered(prompt.text) for prompts in asked for prompt in prompts]
    texts = iter(continuations(edited.model, edited.tokenizer, flat, max_new_tokens))
    found = []
    for case, prompts in zip(cases, asked, strict=True):
        answers = []
        for prompt in prompts:
            text, right = next(texts), prompt.right
            spaced = case.request.separator != ""
            begins = (
                None
                if right is None
                else contains_answer(right, text, at_start=True, spaced=spaced)
            )
            holds = None if right is None else contains_answer(right, text, spaced=spaced)
            answers.append(Answer(prompt.kind, prompt.text, text, begins, holds))
        found.append(answers)
    return found


def contains_answer(answer: str, text: str, *, at_start: bool = False, spaced: bool = True) -> bool:
    """Whether a text contains an answer, or begins with it: whole words, case-insensitive.

    Scripts without spaces between words (`spaced=False`) have no word boundaries to match.
    """
    pattern = re.escape(_plain(answer))
    if spaced:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    text = _plain(text)
    return bool(re.match(pattern, text) if at_start else re.search(pattern, text))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def summarise_answers(answers: Sequence[Sequence[Answer]]) -> dict[str, Score]:
    """Return all scores of generated answers; see `Generated.summarise`."""
    return Generated().summarise(answers)
