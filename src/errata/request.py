"""Edit requests: what should change, in words.

A request is a prompt with one slot `{}`, a subject that fills it and the target
that should follow. People write `"The {Eiffel Tower} is in"`; files carry either
form. The slot is filled by cutting the prompt in two, never by `str.format`, so
braces inside a subject or target are harmless.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError, field_validator

from errata.errors import ErrataError, listed
from errata.files import parse_json, reason
from errata.settings import Settings, describe

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
        return cls.of({"target": target, **_prompt_and_subject(text, subject)})

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


def _slotted(text: str, subject: str) -> str:
    """Put the slot where the subject stands, unless there is one."""
    marked = "{" + subject + "}"
    return text if SLOT in text else text.replace(marked if marked in text else subject, SLOT, 1)


def _prompt_and_subject(text: str, subject: str | None) -> dict[str, str]:
    if subject is not None:
        if not subject.strip() or not (SLOT in text or subject in text):
            raise ErrataError(
                f"the subject {subject!r} has no place in {text!r}",
                f"write {SLOT} where it stands, or leave the subject out and mark it in braces",
            )
        return {"prompt": _slotted(text, subject), "subject": subject}
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


def read_requests(path: str | Path) -> list[EditRequest]:
    """Read requests from a JSONL, JSON (a list) or CSV file; CounterFact records work as well.

    Every record is validated; all problems are reported in one `ErrataError`, each
    with its record number (from 1) and field.
    """
    path = Path(path)
    requests, problems = [], []
    for number, record in enumerate(_records(path), start=1):
        try:
            requests.append(request_from(record))
        except ValidationError as error:
            problems.append(f"record {number}:\n{describe(error)}")
        except ErrataError as error:
            problems.append(f"record {number}: {error.message}")
    if problems:
        raise ErrataError(
            f"{len(problems)} of {len(problems) + len(requests)} records in {path} are not valid:\n"
            + listed(problems),
            'a record looks like {"prompt": "{} is in", "subject": "Big Ben", "target": "Rome"}',
        )
    if not requests:
        raise ErrataError(f"{path} holds no requests", "give at least one record")
    return requests


def request_from(record: Any) -> EditRequest:
    """Read one record of any shape that people use; what is wrong is left to the caller to tell.

    Raises pydantic's `ValidationError`, or `ErrataError` where the subject cannot be found.
    """
    return EditRequest.model_validate(_flatten(record))


def _records(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ErrataError(
            f"cannot read {path}: {reason(error)}", "check the path and that the file is UTF-8"
        ) from None
    readers = {".json": _json_records, ".jsonl": _jsonl_records, ".csv": _csv_records}
    if path.suffix not in readers:
        raise ErrataError(
            f"cannot tell the format of {path}", f"name the file with one of {', '.join(readers)}"
        )
    return readers[path.suffix](text, path)


def _json_records(text: str, path: Path) -> Iterator[Any]:
    try:
        records = parse_json(text)
    except ValueError as error:
        raise ErrataError(
            f"{path} is not JSON: {error}", "one record a line belongs in a .jsonl file"
        ) from None
    yield from records if isinstance(records, list) else [records]


def _jsonl_records(text: str, path: Path) -> Iterator[Any]:
    """Yield what each line holds; one that is no JSON as the `ValueError` that it raises."""
    for line in filter(str.strip, text.split("\n")):
        try:
            yield parse_json(line)
        except ValueError as error:
            yield error


def _csv_records(text: str, path: Path) -> Iterator[Any]:
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            yield {
                k: value for k, value in row.items() if k is not None and value not in (None, "")
            }
    except csv.Error as error:
        raise ErrataError(
            f"{path} is not CSV: {error}",
            "is a quotation mark left open? records may be .jsonl, too",
        ) from None


def _flatten(record: Any) -> dict[str, Any]:
    """Bring people's shapes to ours: CounterFact's nesting, `target_new`, braces in the prompt."""
    if isinstance(record, ValueError):
        raise ErrataError(f"is not JSON: {record}")
    if not isinstance(record, dict):
        raise ErrataError(f"is not an object with fields but {record!r:.60}")
    record = dict(record)
    rewrite = record.get("requested_rewrite")
    if isinstance(rewrite, dict):
        record = {**rewrite, "case_id": record.get("case_id")}
    target = record.get("target", record.get("target_new"))
    fields: dict[str, Any] = {
        "prompt": record.get("prompt"),
        "target": target.get("str") if isinstance(target, dict) else target,
        "id": record.get("id", record.get("case_id")),
        "subject": record.get("subject"),
    }
    if "separator" in record:
        fields["separator"] = record["separator"]
    prompt, subject = fields["prompt"], fields["subject"]
    if isinstance(prompt, str) and subject is None and SLOT not in prompt:
        fields |= _prompt_and_subject(prompt, None)
    elif isinstance(prompt, str) and isinstance(subject, str) and SLOT not in prompt:
        fields["prompt"] = _slotted(prompt, subject)
    return {key: value for key, value in fields.items() if value is not None}


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
