"""Running recipes: stages in order, none twice, and a stopped one ends like one that was not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.experiments import edit_run, scoring
from errata.experiments.eval_run import Evaluation
from errata.experiments.recipe import run as stages
from errata.experiments.recipe.run import Outcome, Surroundings, run_recipe
from errata.experiments.recipe.schema import Recipe, recipe_of
from errata.methods import Memit
from errata.metrics import generated
from errata.patches.edited_model import load
from errata.patches.weight_patch import WeightPatch
from laws.bench import PREFIXES, weights
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

SETTINGS = {
    "blocks": [1, 2],
    "search": {"steps": 3, "max_steps": 3, "learning_rate": 0.5, "stop_at": 0.0},
    "contexts": {"prefixes": list(PREFIXES)},
    "moment_weight": 0.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model, cases and a corpus, all on disk."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [
        {**fact.model_dump(exclude_defaults=True), "target_true": "Hesk",
         "neighbours": ["Marrow lies in"], "paraphrases": ["So,"]}
        for fact in FACTS
    ]  # fmt: skip
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    return folder


def recipe(folder: Path, **edit: Any) -> Recipe:
    return recipe_of(
        {
            "model": str(folder / "model"),
            "edit": {
                "dataset": str(folder / "cases.jsonl"),
                "corpus": str(folder / "corpus.txt"),
                "batch_size": 2,
                "sequential": True,
                "settings": SETTINGS,
                **edit,
            },
            "eval": [{}, {"dataset": str(folder / "cases.jsonl"), "limit": 2, "generate": True,
                          "max_new_tokens": 3}],
        }
    )  # fmt: skip


@contextmanager
def no_bar(title: str) -> Iterator[Any]:
    yield lambda done, total: None


def ran(recipe: Recipe, results: Path, told: list[str] | None = None, **how: Any) -> Outcome:
    tell = [].append if told is None else told.append
    return run_recipe(recipe, Surroundings(results, results / "cache", no_bar, tell), **how)


def outcome(results: Path) -> dict[str, bytes]:
    """Everything that was left, to the byte, moments apart."""
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.is_file() and "cache" not in path.parts
    }


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A recipe that nothing interrupted."""
    return ran(recipe(folder), tmp_path_factory.mktemp("straight"))


def test_stages_run_in_order_on_the_edited_model(straight: Outcome) -> None:
    found = straight
    assert found.folder.parts[-2:] == ("recipe", "run_000")
    assert list(found.stages) == ["edit", "eval_0", "eval_1"]
    assert [stage["run"] for stage in found.stages.values()] == [
        "MEMIT/run_000",
        "eval/run_000",
        "eval/run_001",
    ]
    edit, asked = found.stages["edit"]["summary"], found.stages["eval_0"]["summary"]
    assert asked == edit, "the edited model was not the one that was asked"
    assert "efficacy_generated" in found.stages["eval_1"]["summary"]
    assert json.loads((found.folder / "summary.json").read_text("utf-8")) == found.stages
    report = (found.folder / "report.md").read_text("utf-8")
    assert "## edit: MEMIT/run_000" in report
    assert "moment_weight: 0.5" in report


class Killed(BaseException):
    """Stands for a process that dies."""


def die_in(patch: pytest.MonkeyPatch, module: Any, name: str, after: int) -> None:
    real, calls = getattr(module, name), []

    def dying(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) > after:
            raise Killed
        return real(*arguments, **named)

    patch.setattr(module, name, dying)


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        (stages, "prepare", 0),
        (Memit, "edit", 1),
        (edit_run, "_write_results", 0),
        (stages, "run_evaluation", 0),
        (Evaluation, "write", 1),
        (scoring, "score_metrics", 2),
        (generated, "answer_cases", 0),
        (stages, "write_results", 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_recipe_that_was_stopped_ends_like_an_uninterrupted_one(
    module: Any, name: str, after: int, folder: Path, straight: Outcome, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die_in(patch, module, name, after)
        ran(recipe(folder), tmp_path)
    found = ran(recipe(folder), tmp_path)
    assert found.stages == straight.stages
    assert outcome(tmp_path) == outcome(straight.folder.parents[1])


def test_a_finished_recipe_is_shown_and_not_run(folder: Path, tmp_path: Path) -> None:
    first = ran(recipe(folder), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        die_in(patch, stages, "_run_stage", 0)
        second = ran(recipe(folder), tmp_path)
    assert (second.folder, second.stages, second.before) == (first.folder, first.stages, True)
    again = ran(recipe(folder), tmp_path, again=True)
    assert (again.folder.name, again.before) == ("run_001", False)
    assert ran(recipe(folder, limit=2), tmp_path).folder.name == "run_002"


def test_a_stage_whose_patches_are_gone_is_done_again(folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die_in(patch, stages, "run_evaluation", 0)
        ran(recipe(folder), tmp_path)
    (tmp_path / "MEMIT" / "run_000" / "patch_0001.safetensors").unlink()
    found = ran(recipe(folder), tmp_path)
    assert found.stages["edit"]["run"] == "MEMIT/run_001"


def test_wrong_cases_are_told_before_the_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "{} is"}\n{"subject": 4}', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ErrataError, match="2 of 2 records"):
        die_in(patch, stages, "load", 0)
        ran(recipe(folder, dataset=str(broken)), tmp_path)
    good = (folder / "cases.jsonl").read_text("utf-8")
    broken.write_text('{"prompt": "{} is"}\n' + good, encoding="utf-8")
    told: list[str] = []
    ran(recipe(folder, dataset=str(broken), skip_invalid=True), tmp_path, told)
    assert "edit: skipped 1 invalid record" in told


def test_hparams_go_below_settings(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "hparams.json").write_text(
        json.dumps({"layers": [3], "v_lr": 0.25, "mom2_dataset": "wikipedia"}), encoding="utf-8"
    )
    told: list[str] = []
    found = ran(recipe(folder, hparams=str(tmp_path / "hparams.json")), tmp_path, told)
    params = json.loads((tmp_path / found.stages["edit"]["run"] / "params.json").read_text("utf-8"))
    assert params["settings"]["blocks"] == [1, 2]
    assert params["settings"]["search"]["learning_rate"] == 0.5
    assert any("not used here: mom2_dataset" in line for line in told)


def test_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(folder).model_dump(mode="json")), encoding="utf-8")
    arguments = ["run", str(path), "--results", str(tmp_path), "--set", "edit.limit=2"]
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["run"] == str(tmp_path / "recipe" / "run_000")
    patch = tmp_path / told["stages"]["edit"]["patches"][0]
    assert len(WeightPatch.load(patch).provenance.requests) == 2
    model = load(str(folder / "model"), patches=[patch])
    assert weights(model.model) != weights(load(str(folder / "model")).model)
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "already finished" in shown
    assert "eval_1: " in shown


def test_a_dry_run_tells_the_plan_and_its_cost_and_does_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(folder).model_dump(mode="json")), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["run", str(path), "--results", str(tmp_path), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [cost["what"] for cost in told["costs"]] == [
        "edit: second moment",
        "edit: search",
        "edit: keys",
        "edit: solve",
        "edit: scores",
        "eval_0: evaluation",
        "eval_1: evaluation",
        "in all",
    ]
    for cost in told["costs"]:
        assert cost["flops"] > 0
        assert cost["seconds"] > 0
    assert [line.split(":")[0] for line in told["plan"]] == ["edit", "edit", "eval_0", "eval_1"]
    assert told["plan"][1] == "edit: in batches of 2, in sequence"
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "nothing is edited or saved" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_recipe_on_the_demo_leaves_the_number_of_threads_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        stages, "finished_run", lambda *_: pytest.fail(f"{torch.get_num_threads()}")
    )
    try:
        torch.set_num_threads(3)
        around = Surroundings(tmp_path, tmp_path / "cache", no_bar, [].append)
        demo = recipe_of({"model": "demo", "eval": {"dataset": "demo", "limit": 1}})
        with pytest.raises(pytest.fail.Exception, match=r"^1$"):
            run_recipe(demo, around)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
