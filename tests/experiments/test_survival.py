"""A small matrix from end to end: what is told is what happened, and it goes on when stopped."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.instructions import read_rows
from errata.data.passages import passage
from errata.experiments.survival import run as runs
from errata.experiments.survival.measure import Questions, displacement, states_of
from errata.experiments.survival.questions import read_questions
from errata.experiments.survival.run import finished_survival, run_survival
from errata.experiments.survival.settings import Matrix, Tuning
from errata.metrics.tasks import Task
from errata.metrics.teacher_forced import score_cases
from errata.patches.edited_model import EditedModel
from errata.patches.weight_patch import WeightPatch
from errata.tuning.train import tune
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer
from tuning.pico import QUICK, ROWS

CASES = [
    Case(
        request=fact,
        target_true="Hesk",
        paraphrases=(f"They say that {fact.subject} is in",),
        neighbours=("The harbour of Gannet lies in",),
    )
    for fact in FACTS
]
ROME = {
    "blocks": [1],
    "second_moment": False,
    "search": {"steps": 3, "max_steps": 3, "stop_at": 0.0},
    "contexts": {"prefixes": ["Well. "]},
}
QUESTIONS = Questions(
    CASES[:3],
    CASES[3:],
    [Task("towns", tuple(ROWS[:3]))],
    [passage(text) for text in SENTENCES[:2]],
    "plain",
    4,
)


def fresh() -> EditedModel:
    return EditedModel(tiny_model("llama"), tiny_tokenizer(), "tiny")


def matrix(**given: Any) -> Matrix:
    quick = {k: v for k, v in QUICK.items() if k != "max_steps"}
    return Matrix.checked(
        {
            "methods": ("rome",),
            "edits": (3,),
            "tunings": ("lora@edited", "full"),
            "data": "rows",
            "tune": {**quick, "max_steps": 2},
            "settings": {"rome": ROME},
            **given,
        }
    )


def survive(asked: Matrix, results: Path) -> tuple[dict[str, Any], Path]:
    return run_survival(asked, fresh, QUESTIONS, ROWS, results)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return survive(matrix(seeds=(0, 1)), tmp_path_factory.mktemp("survival"))


def test_every_figure_has_an_interval(whole: tuple[dict[str, Any], Path]) -> None:
    summary, _ = whole
    assert [(c["method"], c["edits"], c["tuning"]) for c in summary["configurations"]] == [
        ("ROME", 3, "lora@edited"),
        ("ROME", 3, "full"),
    ]
    for cell in summary["configurations"]:
        names = ["stable", "erased", "emergent", "impossible"]
        names += [f"{kind}_{state}" for kind in ("efficacy", "paraphrase", "neighbourhood",
                  "accuracy", "unedited_known", "perplexity", "task_towns_accuracy")
                  for state in ("base", "tuned", "edited", "edited_tuned")]  # fmt: skip
        for name in names:
            assert set(cell[name]) == {"value", "low", "high", "n"}, name
            assert cell[name]["low"] <= cell[name]["value"] <= cell[name]["high"], name
        assert cell["stable"]["n"] == 6
    assert [test["test"] for test in summary["tests"]] == ["paired bootstrap over edits"]


def test_what_is_told_is_what_happened(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """One configuration done again by hand, without the matrix."""
    _, folder = whole
    patch = WeightPatch.load(folder / "edits" / "rome-3" / "patch.safetensors")
    asked = matrix()
    for method, places in (("lora@edited", "1"), ("full", "all")):
        settings = asked.settings_of(Tuning.parse(method), 0)
        told = json.loads(
            (folder / "configurations" / f"rome-3-{method}-s0.json").read_text("utf-8")
        )
        edited, control = fresh(), fresh()
        edited.apply(patch)
        then = states_of(edited, CASES[:3])
        tune(edited, ROWS, settings, tmp_path / f"{method}-edited")
        tune(control, ROWS, settings.with_values(blocks=places), tmp_path / f"{method}-base")
        moves = displacement(states_of(fresh(), CASES[:3]), then, states_of(edited, CASES[:3]))
        assert told["displacement"] == moves
        for model, kept in (
            (edited, told["tuned"]),
            (control, json.loads((folder / told["control"]).read_text("utf-8"))),
        ):
            for i, scores in enumerate(score_cases(model, CASES[:3])):
                for kind in ("efficacy", "paraphrase", "neighbourhood"):
                    expected = [score.success for score in scores if score.kind == kind]
                    assert kept["edits"][i][kind] == expected
            known = score_cases(model, CASES[3:])[0][0]
            assert kept["controls"][0]["known"] == (known.true.nll < known.new.nll)


@pytest.mark.slow
def test_a_stopped_matrix_goes_on_and_ends_the_same(
    whole: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = matrix(seeds=(0, 1))
    real, calls = runs.tune, []

    def breaking(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(runs, "tune", breaking)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            survive(asked, tmp_path)
    summary, folder = survive(asked, tmp_path)
    assert folder.name == "run_000"
    # Four configurations and, seeds apart, two controls each; two were begun twice.
    assert len(calls) == 2 * (2 + 2) + 2
    assert summary == whole[0]
    for name in ("configurations.csv", "edits.csv", "displacement.csv", "tests.csv"):
        assert (folder / name).read_text("utf-8") == (whole[1] / name).read_text("utf-8")


def test_rows_set_aside_are_a_task_whose_name_can_stand_in_a_key() -> None:
    asked = matrix(dataset="demo", data="demo-new", hold_out=4, controls=1)
    questions, rows = read_questions(asked)
    assert [(task.name, len(task.rows)) for task in questions.tasks] == [("rows_set_aside", 4)]
    assert list(questions.tasks[0].rows) == read_rows("demo-new")[len(rows) :]


def test_a_finished_matrix_is_found_by_what_was_asked(
    whole: tuple[dict[str, Any], Path],
) -> None:
    summary, folder = whole
    asked = (matrix(seeds=(0, 1)), fresh(), QUESTIONS, ROWS, folder.parents[1])
    assert finished_survival(*asked) == (summary, folder)
    other = replace(QUESTIONS, passages=[passage("Another text.")])
    assert finished_survival(*asked[:2], other, *asked[3:]) is None
    assert finished_survival(matrix(), *asked[1:]) is None


@pytest.mark.slow
def test_a_command_given_again_shows_what_it_did(tmp_path: Path) -> None:
    def said(*more: str) -> str:
        command = ["survival", "demo", "--edits", "2", "--tunings", "lora", "--controls", "1",
                   "--set", "max_steps=2", "--hold-out", "2",
                   "--results", str(tmp_path)]  # fmt: skip
        return CliRunner().invoke(app, [*command, *more], catch_exceptions=False).stdout

    first, second = said("--json"), said("--json")
    assert json.loads(first) == json.loads(second)
    assert json.loads(first)["run"].endswith("run_000")
    assert "finished before" in said()
    assert json.loads(said("--json", "--again"))["run"].endswith("run_001")


def test_tables_and_pictures_are_written(whole: tuple[dict[str, Any], Path]) -> None:
    _, folder = whole
    for name in ("survival", "probabilities", "displacement"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    report = (folder / "report.md").read_text("utf-8")
    for text in ("| ROME | 3 | lora@edited |", "Task towns accuracy", "never edited", "tests.csv"):
        assert text in report
    with (folder / "edits.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    assert {row["class"] for row in rows} <= {"stable", "erased", "emergent", "impossible"}
    assert not (folder / "work").exists()


@pytest.mark.slow
def test_a_guarded_tuning_shares_its_control_with_the_plain_one(tmp_path: Path) -> None:
    asked = matrix(tunings=("full", "full+penalty+project", "full+reapply"))
    _, folder = survive(asked, tmp_path)
    assert len(list((folder / "controls").iterdir())) == 1
    assert len(list((folder / "configurations").iterdir())) == 3


def test_displacement_by_hand() -> None:
    base = torch.tensor([[[3.0, 4.0]]])
    (found,) = displacement(base, base + torch.tensor([1.0, 0.0]), base + torch.tensor([0.0, 0.0]))
    assert found == {"edit": [0.2], "tune": [0.2], "cosine": [-1.0]}
    (still,) = displacement(base, base, base + 1)
    assert still["cosine"] == [0.0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lora", "lora"),
        ("edited-only", "lora@edited"),
        ("all-but-edited", "lora@others"),
        ("FULL@3.4+project+penalty", "full@3.4+penalty+project"),
    ],
)
def test_tunings_are_written_shortly(text: str, name: str) -> None:
    assert Tuning.parse(text).name == name
    assert Tuning.parse(name) == Tuning.parse(text)


def test_settings_that_do_not_fit_are_told_before_anything_is_done() -> None:
    for wrong, message in (
        ({"tunings": ("loar",)}, "unknown tuning 'loar'"),
        ({"tunings": ("dora+project",)}, "DoRA rescales whole rows"),
        ({"methods": ("rom",)}, "unknown: rom"),
        ({"edits": (0,)}, "all positive"),
        ({"tune": {"epoch": 3}}, "epoch"),
    ):
        with pytest.raises(ErrataError, match=message):
            matrix(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tunings": ("full", "lora@99")}, "no block 99"),
        ({"settings": {"rome": {**ROME, "blocks": [99]}}}, "no block 99"),
        ({"tunings": ("full@0+project",)}, "no edited matrix is tuned"),
        (
            {"tune": {**QUICK, "modules": "gate,q"}, "tunings": ("lora+project",)},
            "no edited matrix",
        ),
        (
            {
                "tunings": ("lora@others",),
                "methods": ("memit",),
                "settings": {"memit": {"blocks": [0, 1, 2, 3]}},
            },
            "every block is edited",
        ),
        ({"tune": {**QUICK, "cutoff_len": 4000}}, "rows of 4000 tokens exceed"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_a_run_is_begun(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ErrataError, match=message):
        survive(matrix(**wrong), tmp_path)
    assert not list(tmp_path.rglob("run_*"))


def test_settings_of_one_method_go_before_those_of_all() -> None:
    settings = matrix(tune={"epochs": 2, "full": {"epochs": 1}}).settings_of
    assert settings(Tuning.parse("lora"), 0).epochs == 2
    assert settings(Tuning.parse("full"), 0).epochs == 1


@pytest.mark.slow
def test_the_verb_on_the_demo(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["survival", "demo", "--edits", "4", "--tunings", "lora,full+project", "--controls", "5",
         "--set", "max_steps=8", "--set", "memit.moment_weight=10", "--results", str(tmp_path),
         "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert [cell["tuning"] for cell in told["configurations"]] == ["lora", "full+project"]
    for cell in told["configurations"]:
        assert not [key for key in cell if " " in key]
        assert cell["efficacy_edited"]["value"] == 1.0
        assert set(cell["decay"]) == {"value", "low", "high", "n"}
