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


def score_table(
    before: Mapping[str, Score] | None,
    after: Mapping[str, Score],
    in_prompt: Mapping[str, Score] | None = None,
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the columns and rows of a table of scores, with columns for those that are given."""
    columns = {"before": before, "fact in prompt": in_prompt}
    given = {name: scores for name, scores in columns.items() if scores}
    given["after" if given else "value"] = after
    rows = [[name, *(str(scores.get(name, "-")) for scores in given.values())] for name in after]
    return ("figure", *given), rows
