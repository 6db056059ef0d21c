"""Rows to tune on: {instruction, input, output} from JSON, JSONL or the Hub, and their tokens.

Prompt and answer are encoded together where that changes no token of the prompt (see
`tokens.split_target`); EOS ends the answer, and what is longer than the cutoff loses its end,
EOS first, as AGI-Edgerunners/LLM-Adapters has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from errata.assets import WORLD_DIR
from errata.core.errors import ErrataError
from errata.core.settings import describe
from errata.core.text import listed
from errata.data.records import Fields, Text, records_of

DEMO_ROWS = {"demo-new": "instruct_new.jsonl", "demo-same": "instruct_same.jsonl"}
"""Rows of the demo's world: about newcomers, or about subjects of it that no case edits."""


class Instruction(Fields):
    """One instruction with its answer; fields beside these are left alone."""

    instruction: Text
    input: str = ""
    output: str = ""
    answer: str | None = None
    """The word that counts in the output, for rows that are asked."""

    @property
    def right(self) -> str:
        """What counts as the answer: `answer`, or the output without its full stop."""
        return (self.answer or self.output).strip().removesuffix(".")


def read_rows(source: str, mirror: Path | None = None, split: str = "train") -> list[Instruction]:
    """Read a .json or .jsonl file, `demo-new` or `demo-same`, or `hf:DATASET[:CONFIG]`.

    Of a Hub dataset it is the rows of one split.

    Raises `ErrataError` for records that are no rows, each with its number.
    """
    records: Sequence[Any]
    if source.startswith("hf:"):
        from errata.data.hub import hub_rows

        dataset, _, config = source.removeprefix("hf:").partition(":")
        records = hub_rows(dataset, config or None, split, mirror)
    else:
        known = DEMO_ROWS.get(source)
        records = records_of(Path(source) if known is None else WORLD_DIR / known)
    rows, problems = [], []
    for number, record in enumerate(records, start=1):
        try:
            rows.append(Instruction.model_validate(record))
        except ValidationError as error:
            problems.append(f"record {number}:\n{describe(error)}")
    if problems:
        raise ErrataError(
            f"{len(problems)} of {len(records)} records in {source} are no rows to tune on:\n"
            + listed(problems),
            "a row is {instruction, input, output}, as in Commonsense-170k; input may be empty",
        )
    if not rows:
        raise ErrataError(f"{source} holds no rows")
    return rows


def digest_of(rows: Sequence[Instruction]) -> str:
    """Return a short hash of rows in order."""
    text = json.dumps([[row.instruction, row.input, row.output] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
