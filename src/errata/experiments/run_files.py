"""The files that a finished run leaves: records per line, `report.md`, `summary.json`.

`summary.json` is written last: a run without it is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.core.files import write_text


def write_results(
    folder: Path,
    heading: str,
    sections: Sequence[str],
    summary: Mapping[str, Any],
    *,
    records: Iterable[Mapping[str, Any]] | None = None,
    records_name: str = "cases.jsonl",
    command: str | None = None,
) -> None:
    """Write a run's records, its report of Markdown `sections`, and its summary."""
    if records is not None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_text(folder / records_name, "".join(lines))
    made_by = [f"Made by `{command}`."] if command else []
    write_text(folder / "report.md", "\n\n".join([f"# {heading}", *sections, *made_by]) + "\n")
    write_summary(folder, summary)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary of a run without a report; it marks the run as finished."""
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
