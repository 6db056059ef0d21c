"""Request files: JSON, JSONL, CSV or TSV, in any of the common structures.

All records are validated before an error is raised, so that all problems are reported together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from errata.core.errors import ErrataError
from errata.core.settings import describe
from errata.core.text import listed
from errata.data.records import records_of, unreadable, unused_fields
from errata.data.request import EditRequest
from errata.data.subject import SLOT, prompt_and_subject, separator_after
from errata.data.tables import numbers_as_text
from errata.data.unicode_forms import normalised_record


class Requests(NamedTuple):
    """Requests read from a file."""

    requests: list[EditRequest]
    skipped: tuple[str, ...] = ()
    """One message per skipped record."""
    unused: tuple[str, ...] = ()
    """Fields of records that are not used."""


def read_requests(path: str | Path, *, normalise: bool = False) -> list[EditRequest]:
    """Read requests from a JSON (a list), JSONL, CSV or TSV file, or `hf:DATASET[:CONFIG]`.

    CounterFact's records are accepted.

    Every record is validated; all problems are reported in one `ErrataError`, each
    with its record number (from 1) and field.
    """
    return load_requests(path, normalise=normalise).requests


def load_requests(
    path: str | Path, *, skip_invalid: bool = False, normalise: bool = False
) -> Requests:
    """Read requests.

    Invalid records are skipped with `skip_invalid` only; it is an error if all are invalid.
    `normalise` gives all texts one Unicode form (see `unicode_forms`).
    """
    requests, problems = [], []
    records = [normalised_record(each) if normalise else each for each in records_of(path)]
    for number, record in enumerate(records, start=1):
        try:
            requests.append(request_from(record))
        except ValidationError as error:
            problems.append(f"record {number}:\n{describe(error)}")
        except ErrataError as error:
            problems.append(f"record {number}: {error.message}")
    names = next((list(map(str, each)) for each in records if isinstance(each, dict)), [])
    missing = names and any("Field required" in problem for problem in problems)
    if problems and not (skip_invalid and requests):
        raise ErrataError(
            f"{len(problems)} of {len(problems) + len(requests)} records in {path} are not valid:\n"
            + listed(problems),
            'a record looks like {"prompt": "{} is in", "subject": "Big Ben", "target": "Rome"}',
            *([] if skip_invalid else ["correct them, or skip them with --skip-invalid"]),
            *([f"the first record has the fields: {', '.join(names)}"] if missing else []),
        )
    if not requests:
        raise ErrataError(f"{path} contains no requests", "give at least one record")
    return Requests(requests, tuple(problems), unused_fields(records, FIELDS))


FIELDS = (
    *("prompt", "subject", "target", "target_new", "separator", "id", "case_id"),
    "requested_rewrite",
)
"""Fields of a record that are read as a request."""


def request_from(record: Any) -> EditRequest:
    """Read one record of any supported structure.

    Raises pydantic's `ValidationError`, or `ErrataError` if the subject cannot be found.
    """
    return EditRequest.model_validate(_flatten(record))


def _flatten(record: Any) -> dict[str, Any]:
    """Convert any supported structure (CounterFact's, `target_new`, braces) to request fields."""
    if isinstance(record, ValueError):
        raise ErrataError(unreadable(record))
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
    for name in ("subject", "target"):
        fields[name] = numbers_as_text(fields[name])
    prompt, subject = fields["prompt"], fields["subject"]
    texts = isinstance(prompt, str) and isinstance(subject, str | None)
    if texts and SLOT not in prompt and (subject is None or subject.strip()):
        fields["prompt"], fields["subject"] = prompt_and_subject(prompt, subject)
    if "separator" in record:
        fields["separator"] = record["separator"]
    elif isinstance(fields["prompt"], str) and isinstance(fields["subject"], str):
        fields["separator"] = separator_after(fields["prompt"], fields["subject"])
    return {key: value for key, value in fields.items() if value is not None}
