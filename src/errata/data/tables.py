"""Tables of comma-, semicolon- or tab-separated values, as spreadsheets write them.

The first row names the columns. Cells stay the text that they are: `NA`, `007` and `1.50` too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError
from errata.core.text import counted

DELIMITERS = ",;\t|"
DIRECTIVE = "sep="
"""How Excel names the delimiter, in a line before the header."""


class RowError(ValueError):
    """A row of a table that does not fit its columns."""


def table_records(text: str, path: Path) -> Iterator[dict[str, str] | RowError]:
    """Yield each row as a record of its cells that are not empty; blank rows are left out.

    A row with more cells than columns is returned as a `RowError`. Raises `ErrataError` for text
    that is no table.
    """
    first, _, rest = text.partition("\n")
    directive = first.strip().lower()
    if directive.startswith(DIRECTIVE) and len(directive) == len(DIRECTIVE) + 1:
        delimiter, text = directive[-1], rest
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [_column(cell) for cell in next(rows, [])]
        twice = sorted({name for name in columns if name and columns.count(name) > 1})
        if twice:
            raise ErrataError(
                f"{path} has several columns named {twice[0]!r}", "give each column its own name"
            )
        for row in rows:
            cells = [cell for cell in row if cell.strip()]
            if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
                yield RowError(
                    f"has {len(row)} cells, but there are {counted(len(columns), 'column')} "
                    f"({', '.join(columns)}); put text that contains {delimiter!r} in quotes"
                )
            elif cells:
                pairs = zip(columns, row, strict=False)
                yield {column: cell for column, cell in pairs if column and cell != ""}
    except csv.Error as error:
        raise ErrataError(
            f"{path} is not CSV: {error}",
            "check for an unclosed quotation mark, or use .jsonl",
        ) from None


def _delimiter(header: str) -> str:
    """Return the delimiter that cuts the header into most columns; the comma if none does."""

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(DELIMITERS, key=columns)


def _column(cell: str) -> str:
    """Return a column's name in lower case with underscores, as fields are named."""
    return "_".join(cell.replace("\ufeff", "").split()).lower()


def numbers_as_text(value: Any) -> Any:
    """Return a number of a JSON record as the text that a table would have; others unchanged."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value
