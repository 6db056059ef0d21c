"""How often `errata edit` does each step: requests are encoded once, answers are batched."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from errata.cli.main import main
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

FAST = ("--steps", "2", "--prefix-lengths", "2", "--blocks", "1,2", "--corpus", "text.txt")
FACT = ("The {Lantern Bridge} is in the city of", "Quenby")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pico model, a corpus and requests, to which the process changes."""
    tiny_model("llama").save_pretrained(tmp_path / "pico")
    tiny_tokenizer().save_pretrained(tmp_path / "pico")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 2), encoding="utf-8")
    lines = [json.dumps(fact.model_dump(exclude_none=True)) for fact in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def calls_of(*arguments: str) -> Counter[str]:
    """Run `errata edit pico` and count the calls of errata's functions, by module and name."""
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("errata."):
            counts[f"{module.removeprefix('errata.')}.{frame.f_code.co_qualname}"] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["errata", "edit", "pico", *arguments, *FAST])
        sys.setprofile(count)
        try:
            main()
        except SystemExit as end:
            assert not end.code
        finally:
            sys.setprofile(None)
    return counts


ONCE = (
    "data.request.check_batch",
    "experiments.fact_editing.edit_facts",
    "experiments.edit_run.run_edits",
    "methods.closed_form.prefixes.sample_prefixes",
    "methods.closed_form.memory.searched_at_once",
    "methods.closed_form.target_search.search_targets",
)


def test_one_fact_is_checked_encoded_and_grouped_once(folder: Path) -> None:
    counts = calls_of(*FACT)
    assert {name: counts[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert counts["methods.closed_form.encoding.rewrite_of"] == 1
    assert counts["models.generation._generate"] == 2  # the answers before, and those after
    assert counts["patches.edited_model.EditedModel.generate"] == 0


@pytest.mark.parametrize("how", [(), ("--batch-size", "2"), ("--batch-size", "2", "--sequential")])
def test_each_of_many_requests_is_encoded_once(how: tuple[str, ...], folder: Path) -> None:
    counts = calls_of("--requests", "facts.jsonl", *how)
    batches = 2 if how else 1
    assert counts["data.request.check_batch"] == batches
    assert counts["methods.closed_form.encoding.rewrite_of"] == len(FACTS)
    assert counts["methods.closed_form.prefixes.sample_prefixes"] == 1
    assert counts["methods.closed_form.memory.searched_at_once"] == 1
    searches = 2 if "--sequential" in how else 1  # batches apart are searched together
    assert counts["methods.closed_form.target_search.search_targets"] == searches
    stays = not how or "--sequential" in how
    assert counts["models.generation._generate"] <= (4 if stays else 0)
