"""Rows for instruction tuning: {instruction, input, output} from JSON, JSONL or the Hub.

`tuning/encode.py` turns them into tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from errata.assets import WORLD_DIR
from errata.core.errors import ErrataError
from errata.core.settings import describe
from errata.core.text import listed
from errata.data.records import Fields, Text, records_of

DEMO_ROWS = {"demo-new": "instruct_new.jsonl", "demo-same": "instruct_same.jsonl"}
"""Instruction rows about new subjects, or about subjects of the demo's world that no case edits."""


class Instruction(Fields):
    """One instruction with its answer; other fields are ignored."""

    instruction: Text
    input: str = ""
    output: str = ""
    answer: str | None = None
    """The part of the output that is scored, for evaluation rows."""

    @property
    def right(self) -> str:
        """The answer that is scored: `answer`, or the output without its full stop."""
        return (self.answer or self.output).strip().removesuffix(".")


def read_rows(source: str, mirror: Path | None = None, split: str = "train") -> list[Instruction]:
    """Read a file (see `records_of`), `demo-new` or `demo-same`, or `hf:DATASET[:CONFIG]`.

    `split` selects the split of a Hub dataset; `mirror` is a folder with copies of Hub datasets.
    Raises `ErrataError` for invalid records, each with its number.
    """
    known = DEMO_ROWS.get(source)
    records = records_of(source if known is None else WORLD_DIR / known, split, mirror)
    rows, problems = [], []
    for number, record in enumerate(records, start=1):
        try:
            rows.append(Instruction.model_validate(record))
        except ValidationError as error:
            problems.append(f"record {number}:\n{describe(error)}")
    if problems:
        raise ErrataError(
            f"{len(problems)} of {len(records)} records in {source} are not instruction rows:\n"
            + listed(problems),
            "a row is {instruction, input, output}, as in Commonsense-170k; input may be empty",
        )
    if not rows:
        raise ErrataError(f"{source} contains no rows")
    return rows


def digest_of(rows: Sequence[Instruction]) -> str:
    """Return the first 16 hex digits of a SHA-256 hash of the rows in order."""
    text = json.dumps([[row.instruction, row.input, row.output] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
