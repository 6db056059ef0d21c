"""Records of files and Hub datasets, and the building blocks of dataset formats."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.data.case import Case
from errata.data.hub import hub_rows
from errata.data.tables import RowError, table_records

Record = Mapping[str, Any]
HUB = "hf:"
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")


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
    used: Sequence[str] = ()
    """Fields that are read."""


def records_of(
    source: str | Path, split: str = "train", mirror: Path | None = None
) -> Sequence[Any]:
    """Return the records of a .json (a list), .jsonl, .csv or .tsv file, or `hf:DATASET[:CONFIG]`.

    `split` selects the split of a Hub dataset, `mirror` is a folder with copies of Hub datasets.
    A .jsonl line that is not valid JSON and a table's row that is not valid are returned as their
    `ValueError`. Text is UTF-8, or UTF-16 with a byte order mark. A file with
    another name is read as JSON. Raises `ErrataError` for a file that cannot be read.
    """
    if str(source).startswith(HUB):
        dataset, _, config = str(source).removeprefix(HUB).partition(":")
        return hub_rows(dataset, config or None, split, mirror)
    path = Path(source)
    text, suffix = _text_of(path), path.suffix.lower()
    if suffix == ".jsonl":
        return [_line(line) for line in text.split("\n") if line.strip()]
    if suffix in (".csv", ".tsv"):
        return list(table_records(text, path))
    try:
        records = parse_json(text)
    except ValueError as error:
        if suffix != ".json":
            raise ErrataError(
                f"unknown file format: {path}",
                f"use a file that ends in one of {', '.join(SUFFIXES)}",
            ) from None
        raise ErrataError(
            f"{path} is not JSON: {error}",
            "a file with one record per line must end in .jsonl",
            "if the file is truncated, download or copy it again",
        ) from None
    return records if isinstance(records, list) else [records]


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read {path}: {reason(error)}", "check the path and that the file is UTF-8"
        ) from None


def unused_fields(records: Sequence[Any], used: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the records' fields that are not used, in the order of the records."""
    names = {str(name): None for record in records if isinstance(record, dict) for name in record}
    return tuple(name for name in names if name not in used)


def unreadable(error: ValueError) -> str:
    """Return what is wrong with a record that could not be read."""
    return str(error) if isinstance(error, RowError) else f"is not JSON: {error}"


def _line(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        return error
