"""Edits of every kind on the command line: `--patch` in eval and chat, `ls patches`, survival."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.test_eval import CASES as RECORDS
from errata.cli.main import app
from errata.data.datasets import read_cases
from errata.experiments.survival import run as runs
from errata.metrics.teacher_forced import score_cases, summarise
from errata.patches.base import load_edit
from errata.patches.edited_model import load
from experiments.test_survival import fresh, matrix, survive
from laws.kinds import EDITS, edits_of, wide
from tiny import FACTS, tiny_model, tiny_tokenizer

over_kinds = pytest.mark.parametrize("kind", list(EDITS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model, cases, and an edit of every kind in a run of its own."""
    folder = tmp_path_factory.mktemp("kinds")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    records = [{**record, "generation_prompts": []} for record in RECORDS]
    (folder / "cases.json").write_text(json.dumps(records), encoding="utf-8")
    for number, (_, edit) in enumerate(edits_of(load(str(folder / "model"))).items()):
        edit.save(folder / "results" / "TEST" / f"run_{number:03d}" / "patch.safetensors")
    return folder


def path_of(folder: Path, kind: str) -> Path:
    return folder / "results" / "TEST" / f"run_{list(EDITS).index(kind):03d}" / "patch.safetensors"


def called(*arguments: str | Path) -> Any:
    """Run a verb in this process; return its JSON."""
    found = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@over_kinds
def test_eval_scores_the_model_with_the_edit(kind: str, folder: Path, tmp_path: Path) -> None:
    path, model = path_of(folder, kind), folder / "model"
    asked = ["--dataset", folder / "cases.json", "--results", tmp_path]
    told = called("eval", model, "--patch", path, *asked, "--generate", "--max-new-tokens", "4")
    edited = load(str(model), patches=[path])
    cases = read_cases(str(folder / "cases.json"), None)
    after = score_cases(edited, cases)
    with edited.without_patches():
        before = score_cases(edited, cases)
    assert before != after
    summary = told["summary"]
    for held, scores in ((summary["before"], before), (summary, after)):
        for name, score in summarise(scores).items():
            assert held[name] == score.model_dump()


@over_kinds
def test_chat_answers_without_and_with_the_edit(kind: str, folder: Path) -> None:
    path, model, prompt = path_of(folder, kind), folder / "model", FACTS[0].text
    (row,) = called("chat", model, "--patch", path, "-p", prompt, "--max-new-tokens", "4")[
        "answers"
    ]
    edited = load(str(model), patches=[path])
    with edited.without_patches():
        before = edited.generate(prompt, 4)
    assert row == {"prompt": prompt, "before": before, "after": edited.generate(prompt, 4)}


def test_a_listing_names_the_kinds(folder: Path) -> None:
    rows = called("ls", "patches", "--results", folder / "results")["patches"]
    held = [load_edit(path_of(folder, kind)) for kind in EDITS]
    assert [(row["kind"], row["edits"]) for row in rows] == [(e.kind, e.summary) for e in held]
    assert {row["kind"] for row in rows} == {"weight", "module", "prompt"}


@pytest.mark.parametrize("kind", ["sparse", "module", "prompt"])
def test_survival_takes_an_edit_of_any_kind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        runs.Survival, "_edit", lambda self, edited, method, count: wide(EDITS[kind](edited))
    )
    _, folder = survive(matrix(tunings=("full",)), tmp_path)
    (saved,) = folder.glob("edits/*/patch.safetensors")
    edit = wide(EDITS[kind](fresh()))
    assert load_edit(saved) == edit
    (cell,) = (json.loads(path.read_text()) for path in folder.glob("configurations/*.json"))
    (control,) = (json.loads(path.read_text()) for path in folder.glob("controls/*.json"))
    assert cell["tuned"]["edits"] != control["edits"], "the edit was gone after tuning"
