"""Request files: JSONL, JSON or CSV, in any of the common structures.

All records are validated before an error is raised, so that all problems are reported together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.core.settings import describe
from errata.core.text import listed
from errata.data.request import SLOT, EditRequest, prompt_and_subject, with_slot


def read_requests(path: str | Path) -> list[EditRequest]:
    """Read requests from a JSONL, JSON (a list) or CSV file; CounterFact records are accepted.

    Every record is validated; all problems are reported in one `ErrataError`, each
    with its record number (from 1) and field.
    """
    return load_requests(path)[0]


def load_requests(
    path: str | Path, *, skip_invalid: bool = False
) -> tuple[list[EditRequest], tuple[str, ...]]:
    """Read requests, and one message per skipped record.

    Invalid records are skipped with `skip_invalid` only; it is an error if all are invalid.
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
    if problems and not (skip_invalid and requests):
        raise ErrataError(
            f"{len(problems)} of {len(problems) + len(requests)} records in {path} are not valid:\n"
            + listed(problems),
            'a record looks like {"prompt": "{} is in", "subject": "Big Ben", "target": "Rome"}',
            *([] if skip_invalid else ["correct them, or skip them with --skip-invalid"]),
        )
    if not requests:
        raise ErrataError(f"{path} contains no requests", "give at least one record")
    return requests, tuple(problems)


def request_from(record: Any) -> EditRequest:
    """Read one record of any supported structure.

    Raises pydantic's `ValidationError`, or `ErrataError` if the subject cannot be found.
    """
    return EditRequest.model_validate(_flatten(record))


def _records(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read {path}: {reason(error)}", "check the path and that the file is UTF-8"
        ) from None
    readers = {".json": _json_records, ".jsonl": _jsonl_records, ".csv": _csv_records}
    if path.suffix not in readers:
        raise ErrataError(
            f"unknown file format: {path}", f"use a file that ends in one of {', '.join(readers)}"
        )
    return readers[path.suffix](text, path)


def _json_records(text: str, path: Path) -> Iterator[Any]:
    try:
        records = parse_json(text)
    except ValueError as error:
        raise ErrataError(
            f"{path} is not JSON: {error}", "a file with one record per line must end in .jsonl"
        ) from None
    yield from records if isinstance(records, list) else [records]


def _jsonl_records(text: str, path: Path) -> Iterator[Any]:
    """Yield the record of each line, or the `ValueError` if it is not valid JSON."""
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
            "check for an unclosed quotation mark, or use .jsonl",
        ) from None


def _flatten(record: Any) -> dict[str, Any]:
    """Convert any supported structure (CounterFact's, `target_new`, braces) to request fields."""
    if isinstance(record, ValueError):
        raise ErrataError(f"is not JSON: {record}")
    if not isinstance(record, dict):
        raise ErrataError(f"is not a JSON object: {record!r:.60}")
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
        fields |= prompt_and_subject(prompt, None)
    elif isinstance(prompt, str) and isinstance(subject, str) and SLOT not in prompt:
        fields["prompt"] = with_slot(prompt, subject)
    return {key: value for key, value in fields.items() if value is not None}
