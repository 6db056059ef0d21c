"""How a recipe's stages are shown: the lines and the table of each, and the report's sections."""

from __future__ import annotations

from typing import Any

import yaml

from errata.experiments.recipe.schema import Recipe
from errata.metrics.registry import read_scores
from errata.reports.tables import markdown_table, score_table


def stage_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines above a stage's table: its plan and its advice, where it has them."""
    plan, advice = found.get("plan"), found.get("advice")
    return [*([plan] if plan else []), *([f"advice: {advice}"] if advice else [])]


def stage_rows(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the columns and rows of a stage's table."""
    before, in_prompt = (read_scores(summary.get(half) or {}) for half in ("before", "in_prompt"))
    return score_table(before, read_scores(summary), in_prompt)


def sections(recipe: Recipe, stages: dict[str, dict[str, Any]]) -> list[str]:
    """Return the sections of the report: the recipe, and a table of each stage."""
    plain = recipe.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    parts = [f"```yaml\n{text}```"]
    for name, found in stages.items():
        parts += [f"## {name}: {found['run']}", *stage_lines(found)]
        parts += [markdown_table(*stage_rows(found["summary"]))]
    return parts
