"""Markdown tables, and the rows of a table of scores before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from errata.metrics.scores import Score


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def score_rows(scores: Mapping[str, Score]) -> list[list[str]]:
    """Return table rows: a score's name and its value."""
    return [[name, str(score)] for name, score in scores.items()]


def before_after_rows(before: Mapping[str, Score], after: Mapping[str, Score]) -> list[list[str]]:
    """Return table rows: a score's name, its value before and after."""
    return [[name, str(before.get(name, "-")), str(after.get(name, "-"))] for name in after]
