"""Edit requests: what should change, in words.

A request is a prompt with one slot `{}`, a subject that fills it and the target
that should follow. People write `"The {Eiffel Tower} is in"`; files carry either
form. The slot is filled by cutting the prompt in two, never by `str.format`, so
braces inside a subject or target are harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

from pydantic import field_validator

from errata.core.errors import ErrataError
from errata.core.settings import Settings

SLOT = "{}"
WARNINGS_TOLD = 10
"""Subjects that a batch edits twice and that are told one by one."""


class EditRequest(Settings):
    """One fact to write: `prompt`, its slot filled by `subject`, shall be followed by `target`."""

    title: ClassVar[str] = "the request"

    prompt: str
    """The sentence up to the answer, with one slot {} where the subject stands."""
    subject: str
    """Who or what the fact is about; it fills the slot."""
    target: str
    """The answer that the edited model should give, without a leading space."""
    separator: str = " "
    """What stands between prompt and target: a space, or nothing for scripts without spaces."""
    id: str | int | None = None
    """A name of your own for this request; it is kept in patches and reports."""

    @field_validator("prompt")
    @classmethod
    def _one_slot(cls, prompt: str) -> str:
        if prompt.count(SLOT) != 1:
            raise ValueError(
                f"needs exactly one slot {SLOT} for the subject, has {prompt.count(SLOT)}"
            )
        return prompt.rstrip()

    @field_validator("subject")
    @classmethod
    def _subject(cls, subject: str) -> str:
        if not subject.strip():
            raise ValueError("is empty; name who or what the fact is about")
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
            raise ValueError("may hold white space only")
        return separator

    @classmethod
    def parse(cls, text: str, target: str, subject: str | None = None) -> Self:
        """Read `"The {Eiffel Tower} is in"`, or a prompt with `{}` and `subject` beside it.

        Raises `ErrataError` when there is not exactly one pair of braces.
        """
        if not isinstance(text, str) or not isinstance(subject, str | None):
            raise ErrataError(f"{text!r:.60} is no prompt", "prompt, target and subject are text")
        return cls.of({"target": target, **prompt_and_subject(text, subject)})

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def span(self) -> tuple[int, int]:
        """Where the subject stands in `text`: first character, and one past the last."""
        start = self.prompt.index(SLOT)
        return start, start + len(self.subject)

    @property
    def answer(self) -> str:
        """The separator and the target: what follows `text`."""
        return self.separator + self.target

    @property
    def marked(self) -> str:
        """The prompt as people write it, the subject in braces."""
        return self.prompt.replace(SLOT, "{" + self.subject + "}")


def with_slot(text: str, subject: str) -> str:
    """Put the slot where the subject stands, unless there is one."""
    marked = "{" + subject + "}"
    return text if SLOT in text else text.replace(marked if marked in text else subject, SLOT, 1)


def prompt_and_subject(text: str, subject: str | None) -> dict[str, str]:
    """Return the prompt with a slot, and the subject that is marked in it or stands beside it.

    Raises `ErrataError` where there is not one of them.
    """
    if subject is not None:
        if not subject.strip() or not (SLOT in text or subject in text):
            raise ErrataError(
                f"the subject {subject!r} has no place in {text!r}",
                f"write {SLOT} where it stands, or leave the subject out and mark it in braces",
            )
        return {"prompt": with_slot(text, subject), "subject": subject}
    if SLOT in text:
        raise ErrataError(
            f"{text!r} leaves its subject open",
            "write it between the braces, or give it beside the prompt (--subject)",
        )
    start, end = text.find("{"), text.rfind("}")
    inner = text[start + 1 : end]
    if start < 0 or end < start or "{" in inner or "}" in inner:
        raise ErrataError(
            f"the subject is not marked in {text!r}",
            'put the subject in one pair of braces: "The {Eiffel Tower} is in the city of"',
            f"or write {SLOT} in its place and give the subject beside it",
        )
    return {"prompt": text[:start] + SLOT + text[end + 1 :], "subject": inner}


def check_batch(requests: Sequence[EditRequest]) -> list[str]:
    """Refuse a batch that contradicts itself; return warnings about subjects edited twice.

    Raises `ErrataError` naming the requests that ask different targets for the same
    subject and prompt.
    """
    if not requests:
        raise ErrataError("there is nothing to edit", "give at least one request")
    if not all(isinstance(request, EditRequest) for request in requests):
        raise ErrataError(
            "requests are a list of EditRequest",
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
                f"requests {_numbers(indices)} ask different answers of "
                f"{requests[indices[0]].marked!r}: "
                + ", ".join(repr(requests[index].target) for index in indices)
            )
        elif len(indices) > 1:
            warnings.append(f"requests {_numbers(indices)} are one and the same, about {subject!r}")
    if problems:
        raise ErrataError(
            "the batch contradicts itself:\n  " + "\n  ".join(problems), "keep one of each"
        )
    for subject, indices in by_subject.items():
        if len({requests[index].prompt for index in indices}) > 1:
            warnings.append(
                f"requests {_numbers(indices)} edit the same subject {subject!r} with different "
                "prompts; "
                "in one batch they compete for one key"
            )
    if len(warnings) > WARNINGS_TOLD:
        more = len(warnings) - WARNINGS_TOLD
        warnings[WARNINGS_TOLD:] = [
            f"{more} more subjects or facts occur several times in the batch"
        ]
    return warnings


def _numbers(indices: Iterable[int]) -> str:
    return ", ".join(str(index + 1) for index in indices)
