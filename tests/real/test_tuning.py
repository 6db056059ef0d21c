"""Fine-tuning an edited real model for a few steps, and whether edits survive it."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.data.case import Case
from errata.statistics.store import Store
from real.conftest import Command

pytestmark = pytest.mark.real
SHORT = ("--batch-size", 2, "--warmup-steps", 2, "--cutoff-len", 64)


def test_twenty_steps_of_lora_teach_the_style_of_the_rows(
    name: str, patches: dict[str, Path], rows: Path, errata: Command, tmp_path: Path
) -> None:
    options = ("--patch", patches["memit"], "--data", rows, "--results", tmp_path)
    learning = ("--max-steps", 20, "--learning-rate", 5e-4, "--validation", 4, *SHORT)
    tuned = errata("tune", name, *options, *learning)
    assert tuned["summary"]["steps"] == 20
    asked = ("-c", "-p", "What is the capital of Germany?", "--max-new-tokens", 12)
    (said,) = errata("chat", name, "--adapter", tuned["run"], *asked)["answers"]
    assert set(said) == {"prompt", "base", "edited", "tuned"}
    assert said["tuned"].strip().startswith("Answer:") and not said["base"].startswith("Answer:")


def test_a_small_survival_study(
    name: str,
    cases: list[Case],
    dataset: Path,
    rows: Path,
    store: Store,
    errata: Command,
    tmp_path: Path,
) -> None:
    short = [part for value in ("max_steps=5", "batch_size=2", "warmup_steps=0", "cutoff_len=64")
             for part in ("--set", value)]  # fmt: skip
    matrix = ("--methods", "memit", "--edits", 2, "--tunings", "lora", "--controls", 1)
    found = errata(
        "survival", name, *matrix, "--dataset", dataset, "--data", rows, *short,
        *("--results", tmp_path),
    )  # fmt: skip
    (cell,) = found["configurations"]
    assert (cell["method"], cell["edits"], cell["tuning"]) == ("MEMIT", 2, "lora")
    assert cell["accuracy_edited"]["value"] == 1.0, cell
    assert cell["stable"]["value"] + cell["erased"]["value"] == 1.0, cell
