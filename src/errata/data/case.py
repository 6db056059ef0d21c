"""`Case`: a request with everything that is asked of the edited model afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Self

from pydantic import model_validator

from errata.core.settings import Settings
from errata.data.request import EditRequest


class Probe(Settings):
    """A prompt with the answer that it should go on having."""

    prompt: str
    """The text up to the answer."""
    answer: str
    """What is right there, without a leading space."""


class Case(Settings):
    """One edit and the prompts that show what it did and what it broke."""

    request: EditRequest
    """The edit."""
    target_true: str | None = None
    """What the unedited model says, and what neighbours should go on being answered."""
    paraphrases: tuple[str, ...] = ()
    """The same question in other words; the new target should follow."""
    neighbours: tuple[str, ...] = ()
    """Prompts about other subjects with the same true answer; it should still follow."""
    neighbour_answers: tuple[str, ...] = ()
    """The neighbours' right answers, where each has its own; otherwise `target_true` is right."""
    same_subject: tuple[Probe, ...] = ()
    """Other facts about the subject, which the edit should leave alone."""
    generation_prompts: tuple[str, ...] = ()
    """Openings for free text about the subject."""
    attribute_prompts: tuple[str, ...] = ()
    """Prompts about subjects of which the new target has always been true."""
    references: tuple[str, ...] = ()
    """Texts about such subjects; what the edited model writes should resemble them."""
    essence: tuple[str, ...] = ()
    """Those of them that are about the edited subject itself; they should stay likely."""

    @model_validator(mode="after")
    def _one_answer_each(self) -> Self:
        if self.neighbour_answers and len(self.neighbour_answers) != len(self.neighbours):
            raise ValueError(
                f"has {len(self.neighbours)} neighbours but "
                f"{len(self.neighbour_answers)} neighbour_answers"
            )
        return self

    @property
    def id(self) -> str | int | None:
        """The request's own name."""
        return self.request.id


def cases_digest(cases: Iterable[Case]) -> str:
    """Return a hash of everything that cases hold."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(case.model_dump_json().encode() + b"\n")
    return digest.hexdigest()
