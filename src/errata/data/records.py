"""Records of JSON and JSONL files, and the building blocks of dataset formats."""

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
"""A string that is not blank."""


class Fields(BaseModel):
    """The fields of a record that are used; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Format(NamedTuple):
    """A dataset format."""

    name: str
    fields: tuple[str, ...]
    """Fields that identify a record of this format; see the order of `FORMATS`."""
    case: Callable[[Record, int], Case]
    """Converts a record and its number (from 0); raises `ValidationError` or `ErrataError`."""


def records_of(path: Path) -> list[Any]:
    """Return the records of a .json (a list) or .jsonl file.

    A .jsonl line that is not valid JSON is returned as its `ValueError`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
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
            "a file with one record per line must end in .jsonl",
            "if the file is truncated, download or copy it again",
        ) from None
    return records if isinstance(records, list) else [records]


def _line(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        return error


def slotted(text: str, subject: str) -> str:
    """Replace the subject in a text with the slot, preferring an occurrence as a whole word.

    Raises `ErrataError` if the text does not contain the subject.
    """
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text)
    start = whole.start() if whole else text.find(subject)
    if start < 0:
        raise ErrataError(f"subject: {subject!r} does not occur in {text!r}")
    return text[:start] + SLOT + text[start + len(subject) :]
