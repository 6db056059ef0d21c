"""Records of JSON and JSONL files, and what the formats of the field have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.data.case import Case
from errata.data.request import SLOT

Record = Mapping[str, Any]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
"""A string that says something."""


class Fields(BaseModel):
    """The fields of a record that are read; others may stand beside them."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Format(NamedTuple):
    """How records of one kind become cases."""

    name: str
    fields: tuple[str, ...]
    """What a record of this kind has, and of no kind that is asked for before it."""
    case: Callable[[Record, int], Case]
    """Reads a record, given its number from 0; raises `ValidationError` or `ErrataError`."""


def records_of(path: Path) -> list[Any]:
    """Return the records of a .json (a list) or .jsonl file.

    A line of a .jsonl file that is no JSON is returned as the `ValueError` that it raises.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ErrataError(
            f"cannot read {path}: {reason(error)}", "check the path and that the file is UTF-8"
        ) from None
    if path.suffix == ".jsonl":
        return [_line(line) for line in text.split("\n") if line.strip()]
    try:
        records = parse_json(text)
    except ValueError as error:
        raise ErrataError(
            f"{path} is not JSON: {error}",
            "a file of one record a line must be called .jsonl",
            "a file that was cut short while it was copied has to be fetched again",
        ) from None
    return records if isinstance(records, list) else [records]


def _line(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        return error


def slotted(text: str, subject: str) -> str:
    """Return a text with the slot where the subject stands, as a word of its own if it does.

    Raises `ErrataError` when it does not stand there.
    """
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text)
    start = whole.start() if whole else text.find(subject)
    if start < 0:
        raise ErrataError(f"subject: {subject!r} does not stand in {text!r}")
    return text[:start] + SLOT + text[start + len(subject) :]
