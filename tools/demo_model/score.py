"""`python -m demo_model.score`: edit held-out cases and write the table to the model card.

Settings come from the demo's presets, which were chosen on other cases (`--cases dev`). No scored
neighbour is the subject of any edit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from demo_model.card import card_text
from errata.assets import MODEL_DIR, WORLD_DIR
from errata.cli import console
from errata.core.files import write_text
from errata.data.datasets import read_cases
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.methods import METHODS
from errata.methods.edit import prepare
from errata.methods.presets import presets
from errata.metrics.prompts import PROMPT_KINDS
from errata.patches.edited_model import load
from errata.reports.tables import markdown_table

CASES = 100
ROWS: tuple[tuple[str, str, EditPlan], ...] = (
    ("rome", "each alone", EditPlan(batch_size=1)),
    ("memit", "one batch of 100", EditPlan()),
    ("alphaedit", "one batch of 100", EditPlan()),
    ("alphaedit", "ten batches of ten, in sequence", EditPlan(batch_size=10, sequential=True)),
)
"""Rows of the model card's table: method, description, plan."""


def score(dataset: str) -> list[list[str]]:
    """Edit the first hundred cases with every row's plan; return the cells of the table."""
    edited, cases = load("demo"), read_cases(dataset, CASES)
    table = []
    for name, how, plan in ROWS:
        ready = prepare(edited, METHODS[name], {})
        with tempfile.TemporaryDirectory() as folder:
            run = run_edits(edited, cases, ready.method, ready.moments, plan, Path(folder))
        while edited.patches:
            edited.undo()
        scores = run.summary["after"]
        cells = [str(scores[kind]) for kind in (*PROMPT_KINDS, "same_subject_accuracy")]
        table.append([f"{ready.method.label}, {how}", *cells])
        console.progress_line("  ".join(table[-1]))
    return table


def settings_rows() -> list[list[str]]:
    """Return the settings of the presets, one row per method."""
    return [
        [METHODS[name].label, ", ".join(f"{k} {v}" for k, v in _flat(preset.settings))]
        for name, preset in presets()["demo"].items()
    ]


def _flat(values: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value)
        elif key != "prefixes":
            found.append(
                (key, ",".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the cases; write the model card unless `--cases dev` is given."""
    parser = argparse.ArgumentParser(prog="python -m demo_model.score", description=__doc__)
    parser.add_argument("--cases", choices=("test", "dev"), default="test")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = score("demo" if given.cases == "test" else str(WORLD_DIR / "cases_dev.jsonl"))
    columns = ("", *PROMPT_KINDS, "same subject, other facts (accuracy)")
    text = "\n\n".join(
        [
            f"{CASES} held-out cases; share of prompts on which the correct answer is more "
            "likely than the incorrect one, with 95 % intervals. Settings were chosen on other "
            "cases.",
            markdown_table(columns, table),
            markdown_table(("method", "settings"), settings_rows()),
            "    PYTHONPATH=tools python -m demo_model.score",
        ]
    )
    if given.cases == "test":
        figures = json.loads((WORLD_DIR / "figures.json").read_text("utf-8"))
        write_text(MODEL_DIR / "README.md", card_text(figures, text))
    console.text(text)


if __name__ == "__main__":
    main()
