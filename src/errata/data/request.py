"""Edit requests: a prompt, its subject and the target.

A prompt has one slot `{}`, which the subject fills; the target should follow it. Users write
`"The {Eiffel Tower} is in"`; files contain either form. The slot is filled by splitting the
prompt, never with `str.format`, so braces in a subject or target have no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from errata.core.errors import ErrataError
from errata.core.settings import Settings
from errata.core.text import counted
from errata.data.subject import SLOT as SLOT
from errata.data.subject import prompt_and_subject, separator_after
from errata.data.unicode_forms import oddities

LISTED_WARNINGS = 10
"""Number of warnings about repeated subjects that are listed individually."""


class EditRequest(Settings):
    """One fact: `prompt`, with `subject` in its slot, should be followed by `target`."""

    title: ClassVar[str] = "the request"

    prompt: str
    """The text before the answer, with one slot {} for the subject. A space at its end is the
    separator; other white space stays, and the default separator is then empty."""
    subject: str
    """The entity that the fact is about; it fills the slot."""
    target: str
    """The answer that the edited model should give, without a leading space."""
    separator: str = " "
    """Text between prompt and target: a space, or empty for scripts without spaces."""
    id: str | int | None = None
    """Optional identifier, recorded in patches and reports."""

    @model_validator(mode="before")
    @classmethod
    def _white_space(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("prompt"), str):
            return given
        prompt = given["prompt"]
        tail = prompt[len(prompt.rstrip()) :]
        if tail == " " and given.get("separator", " ") == " ":
            return {**given, "prompt": prompt[:-1]}
        return {"separator": "", **given} if tail else given

    @field_validator("prompt")
    @classmethod
    def _one_slot(cls, prompt: str) -> str:
        if prompt.count(SLOT) != 1:
            raise ValueError(
                f"needs exactly one slot {SLOT} for the subject, has {prompt.count(SLOT)}"
            )
        return prompt

    @field_validator("subject")
    @classmethod
    def _subject(cls, subject: str) -> str:
        if not subject.strip():
            raise ValueError("is empty; name the entity that the fact is about")
        return subject.strip()

    @field_validator("target")
    @classmethod
    def _target(cls, target: str) -> str:
        if not target.strip():
            raise ValueError("is empty; give the answer that the model should learn")
        return target.strip()

    @field_validator("separator")
    @classmethod
    def _separator(cls, separator: str) -> str:
        if separator.strip():
            raise ValueError("may contain white space only")
        return separator

    @classmethod
    def parse(
        cls, text: str, target: str, subject: str | None = None, separator: str | None = None
    ) -> Self:
        """Read `"The {Eiffel Tower} is in"`, or a prompt with `{}` and a separate `subject`.

        The default separator is that of `separator_after`.
        Raises `ErrataError` unless the subject is marked or is in the text once, as a whole word.
        """
        if not isinstance(text, str) or not isinstance(subject, str | None):
            raise ErrataError(
                f"{text!r:.60} is not a prompt", "prompt, target and subject must be strings"
            )
        prompt, subject = prompt_and_subject(text, subject)
        if separator is None:
            separator = separator_after(prompt, subject)
        found = {"prompt": prompt, "subject": subject, "target": target, "separator": separator}
        return cls.of(found)

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def span(self) -> tuple[int, int]:
        """Character range of the subject in `text`: start, and one past the end."""
        start = self.prompt.index(SLOT)
        return start, start + len(self.subject)

    @property
    def answer(self) -> str:
        """The separator and the target, as they follow `text`."""
        return self.separator + self.target

    @property
    def marked(self) -> str:
        """The prompt with its subject in braces."""
        return self.prompt.replace(SLOT, "{" + self.subject + "}")


def check_batch(requests: Sequence[EditRequest]) -> list[str]:
    """Check a batch for conflicts; return warnings about repeated subjects and facts.

    Raises `ErrataError` naming requests with different targets for the same subject and prompt.
    """
    if not requests:
        raise ErrataError("there is nothing to edit", "give at least one request")
    if not all(isinstance(request, EditRequest) for request in requests):
        raise ErrataError(
            "requests must be a list of EditRequest",
            '[EditRequest.parse("The {Eiffel Tower} is in the city of", "Rome")]',
        )
    problems, warnings = [], []
    by_fact: dict[tuple[str, str], list[int]] = {}
    by_subject: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        by_fact.setdefault((request.subject, request.prompt), []).append(index)
        by_subject.setdefault(request.subject, []).append(index)
    for (subject, _), indices in by_fact.items():
        targets = {requests[index].target for index in indices}
        if len(targets) > 1:
            problems.append(
                f"requests {_numbers(indices)} have different targets for "
                f"{requests[indices[0]].marked!r}: "
                + ", ".join(repr(requests[index].target) for index in indices)
            )
        elif len(indices) > 1:
            warnings.append(f"requests {_numbers(indices)} are identical, about {subject!r}")
    if problems:
        raise ErrataError(
            "the batch contains conflicting requests:\n  " + "\n  ".join(problems),
            "keep one of each",
        )
    warnings += [*repeats(requests), *_odd_characters(requests)]
    for subject, indices in by_subject.items():
        if len({requests[index].prompt for index in indices}) > 1:
            warnings.append(
                f"requests {_numbers(indices)} edit the same subject {subject!r} with different "
                "prompts; in one batch they share one key"
            )
    return _shortened(warnings)


def _shortened(warnings: list[str]) -> list[str]:
    """Return the first warnings, and the number of further ones."""
    more = len(warnings) - LISTED_WARNINGS
    if more <= 0:
        return warnings
    further = f"{more} more subjects or facts occur repeatedly in the batch"
    return [*warnings[:LISTED_WARNINGS], further]


def repeats(requests: Sequence[EditRequest]) -> list[str]:
    """Return warnings of facts that differ in spaces or case alone, and of their targets."""
    by_fact: dict[tuple[str, str], list[int]] = {}
    for index, request in enumerate(requests):
        key = (_plain(request.subject), _plain(request.prompt))
        by_fact.setdefault(key, []).append(index)
    found = []
    for indices in by_fact.values():
        members = [requests[index] for index in indices]
        shown = f"requests {_numbers(indices)} are one fact, {members[0].marked!r}"
        targets = {_plain(each.target): each.target for each in members}
        forms = {(each.subject, each.prompt, each.target) for each in members}
        if len(targets) > 1:
            found.append(f"{shown}, with different targets: {', '.join(targets.values())}")
        elif len(forms) > 1:
            found.append(f"{shown}, written with other spaces or case")
    return _shortened(found)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _odd_characters(requests: Sequence[EditRequest]) -> list[str]:
    """Return one warning per kind of characters that look like others."""
    found: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        for kind in oddities(request.text + request.answer):
            found.setdefault(kind, []).append(index)
    return [
        f"{counted(len(indices), 'request')} ({_numbers(indices[:LISTED_WARNINGS])}) "
        f"with {kind}, which are other tokens to the model (--normalise replaces them)"
        for kind, indices in found.items()
    ]


def _numbers(indices: Iterable[int]) -> str:
    return ", ".join(str(index + 1) for index in indices)
