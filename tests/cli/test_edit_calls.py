"""How often `errata edit` does each step: requests are encoded once, answers are batched."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cli.calls import calls
from tiny import FACTS

FAST = (
    *("--steps", "2", "--max-steps", "2", "--prefix-lengths", "2"),
    *("--blocks", "1,2", "--corpus", "text.txt"),
)
FACT = ("The {Lantern Bridge} is in the city of", "Quenby")


@pytest.fixture
def folder(pico_folder: Path) -> Path:
    """The folder of `pico_folder` with a file of requests."""
    lines = [json.dumps(fact.model_dump(exclude_none=True)) for fact in FACTS]
    (pico_folder / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return pico_folder


def calls_of(*arguments: str) -> Counter[str]:
    """Run `errata edit pico` and count the calls of errata's functions, by module and name."""
    return calls("edit", "pico", *arguments, *FAST).counts


ONCE = (
    "data.request.check_batch",
    "data.corpus._file_texts",
    "experiments.fact_editing.edit_facts",
    "experiments.edit_run.run_edits",
    "methods.closed_form.prefixes.sample_prefixes",
    "methods.closed_form.memory.searched_at_once",
    "methods.closed_form.target_search.search_targets",
)


def test_one_fact_is_checked_encoded_and_grouped_once(folder: Path) -> None:
    counts = calls_of(*FACT)
    assert {name: counts[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert counts["methods.closed_form.rewrite.rewrite_of"] == 1
    assert counts["models.generation._generate"] == 2  # the answers before, and those after
    assert counts["patches.edited_model.EditedModel.generate"] == 0


@pytest.mark.parametrize("how", [(), ("--batch-size", "2"), ("--batch-size", "2", "--sequential")])
def test_each_of_many_requests_is_encoded_once(how: tuple[str, ...], folder: Path) -> None:
    counts = calls_of("--requests", "facts.jsonl", *how)
    batches = 2 if how else 1
    assert counts["data.request.check_batch"] == batches
    assert counts["methods.closed_form.rewrite.rewrite_of"] == len(FACTS)
    assert counts["methods.closed_form.prefixes.sample_prefixes"] == 1
    assert counts["methods.closed_form.memory.searched_at_once"] == 1
    searches = 2 if "--sequential" in how else 1  # batches apart are searched together
    assert counts["methods.closed_form.target_search.search_targets"] == searches
    stays = not how or "--sequential" in how
    assert counts["models.generation._generate"] <= (4 if stays else 0)


@pytest.mark.parametrize(
    "verb",
    [
        ("edit", "pico", *FACT, "--dry-run"),
        ("sweep-blocks", "pico", "--dataset", "facts.jsonl", "--limit", "1", "--plot", "none"),
    ],
    ids=["edit --dry-run", "sweep-blocks"],
)
def test_a_corpus_is_read_once(verb: tuple[str, ...], folder: Path) -> None:
    found = calls(*verb, *FAST).counts
    assert found["data.corpus._file_texts"] == 1
