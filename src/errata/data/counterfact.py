"""CounterFact (arXiv 2202.05262): edits with paraphrases and neighbours, JSON or JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from errata.case import Case
from errata.errors import ErrataError
from errata.settings import describe


def read(path: Path) -> list[Case]:
    """Read all cases of a file; every broken record is named in one `ErrataError`."""
    cases, problems = [], []
    for number, record in enumerate(_records(path), start=1):
        try:
            cases.append(Case.from_counterfact(record))
        except ValidationError as error:
            problems.append(f"record {number}:\n{describe(error)}")
        except (KeyError, TypeError) as error:
            problems.append(f"record {number} lacks the field {error}")
    if problems:
        raise ErrataError(f"{path} has records that are not valid:\n" + "\n".join(problems))
    return cases


def _records(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        records = json.loads(text)
    except (OSError, ValueError) as error:
        raise ErrataError(f"cannot read {path}: {error}") from None
    return records if isinstance(records, list) else [records]
