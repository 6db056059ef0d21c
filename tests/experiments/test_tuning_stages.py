"""The stages tune and survival in a recipe: what is asked afterwards is the tuned model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.core.errors import ErrataError
from errata.experiments.recipe import run as stages
from errata.experiments.recipe.run import Outcome, Surroundings, run_recipe
from errata.experiments.recipe.schema import recipe_of
from errata.experiments.survival.settings import FOR_DEMO, Matrix
from errata.patches.edited_model import load
from laws.bench import PREFIXES
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer
from tuning.pico import QUICK, ROWS, weights

SETTINGS = {
    "blocks": [1, 2],
    "search": {"steps": 3, "max_steps": 3, "stop_at": 0.0},
    "contexts": {"prefixes": list(PREFIXES)},
    "second_moment": False,
}


@contextmanager
def no_bar(title: str) -> Iterator[Any]:
    yield lambda done, total: None


def ran(recipe: dict[str, Any], results: Path) -> Outcome:
    around = Surroundings(results, results / "cache", no_bar, [].append)
    return run_recipe(recipe_of(recipe), around)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("recipe")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [
        {**fact.model_dump(exclude_defaults=True), "target_true": "Hesk", "paraphrases": ["So,"]}
        for fact in FACTS
    ]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps([row.model_dump() for row in ROWS]), "utf-8")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    return {
        "model": str(folder / "model"),
        "edit": {
            "dataset": str(folder / "cases.jsonl"),
            "corpus": str(folder / "corpus.txt"),
            "settings": {k: v for k, v in SETTINGS.items() if k != "second_moment"},
        },
        "tune": {"data": str(folder / "rows.json"), "settings": QUICK},
        "eval": {},
    }


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_the_tuned_model_is_what_is_asked_also_after_a_stop(
    method: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**recipe, "tune": {**recipe["tune"], "settings": {**QUICK, "method": method}}}
    straight = ran(recipe, tmp_path / "straight")
    assert list(straight.stages) == ["edit", "tune", "eval_0"]
    asked, edit = straight.stages["eval_0"]["summary"], straight.stages["edit"]["summary"]
    assert asked["efficacy_magnitude"] != edit["efficacy_magnitude"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "run_evaluation", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        ran(recipe, tmp_path / "stopped")
    assert ran(recipe, tmp_path / "stopped").stages == straight.stages
    run = straight.stages["tune"]["run"]
    tuned = load(recipe["model"], adapter=tmp_path / "straight" / run)
    other = load(recipe["model"], adapter=tmp_path / "stopped" / run)
    assert all(torch.equal(w, weights(other)[name]) for name, w in weights(tuned).items())
    report = (straight.folder / "report.md").read_text("utf-8")
    assert "edits_said_after" in report


@pytest.mark.slow
def test_a_matrix_is_a_stage(recipe: dict[str, Any], tmp_path: Path) -> None:
    matrix = {
        "edits": [2],
        "tunings": ["full"],
        "dataset": recipe["edit"]["dataset"],
        "data": recipe["tune"]["data"],
        "controls": 1,
        "tune": QUICK,
        "settings": {"memit": recipe["edit"]["settings"]},
        "corpus": recipe["edit"]["corpus"],
    }
    found = ran({"model": recipe["model"], "survival": matrix}, tmp_path).stages["survival"]
    assert found["run"] == "survival/run_000"
    assert set(found["summary"]) >= {"MEMIT 2 full: stable", "MEMIT 2 full: impossible"}


@pytest.mark.parametrize("model", ["demo", {"name": "demo", "path": " "}])
def test_a_matrix_of_the_demo_needs_no_more_than_its_name(model: Any) -> None:
    recipe = recipe_of({"model": model, "survival": {"edits": [5], "hold_out": 3}})
    assert recipe.survival is not None
    found = recipe.survival
    assert (found.data, found.text, found.preset, found.corpus) == ("demo-new", *["demo"] * 3)
    assert (found.hold_out, found.edits) == (3, (5,))
    assert recipe_of({"model": model, "survival": {}}).survival == Matrix.checked(FOR_DEMO)


@pytest.mark.parametrize("model", ["elsewhere", {"name": "demo", "path": "elsewhere"}])
def test_a_matrix_of_another_model_names_its_rows(model: Any) -> None:
    with pytest.raises(ErrataError, match=r"survival\.data: Field required"):
        recipe_of({"model": model, "survival": {}})


def test_what_is_wrong_with_a_tuning_is_told_at_once() -> None:
    with pytest.raises(ErrataError, match="epoch"):
        recipe_of({"model": "demo", "tune": {"data": "demo-new", "settings": {"epoch": 3}}})
    with pytest.raises(ErrataError, match="there is no tuning preset"):
        recipe_of({"model": "demo", "tune": {"data": "demo-new", "preset": "thesis"}})
    with pytest.raises(ErrataError, match="unknown tuning 'loar'"):
        recipe_of({"model": "demo", "survival": {"data": "demo-new", "tunings": ["loar"]}})
