"""`errata eval` and `errata summarize` from the command line to the files they keep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.data.datasets import read_cases
from errata.methods import METHODS
from errata.metrics.teacher_forced import score_cases, summarise
from errata.patches.edited_model import EditedModel, load
from errata.statistics.measure import measure, token_rows
from laws.bench import apply_edit
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

CASES = [
    {
        "case_id": i,
        "requested_rewrite": {
            "prompt": fact.prompt,
            "subject": fact.subject,
            "target_new": {"str": fact.target},
            "target_true": {"str": "Hesk"},
        },
        "paraphrase_prompts": [f"They say that {fact.subject} is in"],
        "neighborhood_prompts": ["The harbour of Gannet lies in", "Marrow lies in"],
        "generation_prompts": [f"{fact.subject} is"] * 2,
    }
    for i, fact in enumerate(FACTS)
]
QUICK = {"steps": 3, "learning_rate": 0.5, "stop_at": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model, a patch for it, and cases, all on disk."""
    folder = tmp_path_factory.mktemp("eval")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "cases.json").write_text(json.dumps(CASES), encoding="utf-8")
    edited = load(str(folder / "model"))
    rows = token_rows(edited.tokenizer, SENTENCES, 64)
    method = METHODS["rome"].of(
        {"blocks": (1,), "search": QUICK, "contexts": {"prefixes": ("Well. ",)}}
    )
    moments = measure(edited.model, rows, [1])
    apply_edit(edited, [FACTS[0]], method, moments=moments).save(folder / "patch.safetensors")
    return folder


def called(*arguments: str | Path) -> str:
    """Run a verb in this process; return what it prints on stdout."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*arguments: str | Path) -> dict[str, Any]:
    """What a verb says with --json."""
    found: dict[str, Any] = json.loads(called(*arguments, "--json"))
    return found


def evaluated(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    return told("eval", folder / "model", "--dataset", folder / "cases.json", *arguments)


def test_a_model_without_patches(folder: Path) -> None:
    found = evaluated(folder)
    edited: EditedModel = load(str(folder / "model"))
    cases = read_cases(str(folder / "cases.json"))
    expected = summarise(score_cases(edited, cases))
    assert found["summary"] == {name: score.model_dump() for name, score in expected.items()}
    for name in ("efficacy", "paraphrase", "neighbourhood", "score"):
        assert set(found["summary"][name]) == {"value", "low", "high", "n"}
    assert (found["cases"], found["run"]) == (4, None)
    assert not list(folder.glob("results*"))


def test_before_and_after_side_by_side(folder: Path, tmp_path: Path) -> None:
    patch = folder / "patch.safetensors"
    plain = evaluated(folder)["summary"]
    found = evaluated(folder, "--patch", patch, "--results", tmp_path)
    assert found["summary"]["before"] == plain
    assert found["summary"] != {**plain, "before": plain}
    run = Path(found["run"])
    assert run == tmp_path / "eval" / "run_000"
    assert sorted(path.name for path in run.iterdir()) == [
        ".params.sha256",
        "cases.jsonl",
        "params.json",
        "report.md",
        "summary.json",
    ]
    stored = json.loads((run / "summary.json").read_text("utf-8"))
    assert stored == {**found["summary"], "plan": found["plan"]}
    params = json.loads((run / "params.json").read_text("utf-8"))
    assert len(params["patches"]) == 1
    assert params["cases"] == [0, 1, 2, 3]
    report = (run / "report.md").read_text("utf-8")
    assert "| figure | before | fact in prompt | after |" in report
    assert "## teacher-forced" in report
    (again,) = told("summarize", tmp_path)["runs"]
    assert again["summary"] == found["summary"]
    assert again["cases"] == 4


def test_what_is_written_is_scored_apart(folder: Path, tmp_path: Path) -> None:
    found = evaluated(folder, "--generate", "--max-new-tokens", "4", "--results", tmp_path)
    summary = found["summary"]
    assert {"efficacy", "efficacy_generated", "efficacy_generated_anywhere", "fluency"} <= set(
        summary
    )
    lines = (tmp_path / "eval" / "run_000" / "cases.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    assert [answer["prompt"] for answer in first["answers"]["after"]] == [
        score["prompt"] for score in first["after"]
    ]
    assert len(first["texts"]["after"]) == 2
    assert first["figures"]["after"]["fluency"] > 0
    (again,) = told("summarize", tmp_path)["runs"]
    assert again["summary"] == summary
    shown = called(
        "eval", folder / "model", "--dataset", folder / "cases.json", "--generate",
        "--max-new-tokens", "4", "--limit", "1",
    )  # fmt: skip
    for title in ("teacher-forced", "written by itself", "texts"):
        assert title in shown


def test_cases_are_chosen_and_broken_ones_counted(folder: Path, tmp_path: Path) -> None:
    broken = {**CASES[0], "requested_rewrite": {**CASES[0]["requested_rewrite"], "subject": ""}}
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(map(json.dumps, [broken, *CASES])), encoding="utf-8")
    with pytest.raises(ErrataError, match=r"(?s)record 1.*requested_rewrite.subject: is empty"):
        told("eval", folder / "model", "--dataset", path)
    arguments = ("eval", folder / "model", "--dataset", path, "--skip-invalid", "--limit", "2")
    found = told(*arguments, "--offset", "1", "--seed", "5")
    assert (found["cases"], found["dataset"]["skipped"], found["dataset"]["seed"]) == (2, 1, 5)
    shown = called(*arguments, "--limit", "1")
    assert "skipped 1 invalid record\n" in shown
    assert f"* 1 case of {path}\n" in shown


def test_runs_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    for limit in ("1", "2"):
        evaluated(folder, "--limit", limit, "--results", tmp_path)
    shown = called("summarize", tmp_path)
    assert "eval/run_000" in shown
    assert "eval/run_001" in shown
    alone = called("summarize", tmp_path / "eval" / "run_001")
    assert "efficacy_magnitude" in alone
    published = called("summarize", tmp_path / "eval" / "run_001", "--published")
    assert "post_rewrite_success" in published
    fewer = told("summarize", tmp_path / "eval" / "run_001", "--first", "1")
    assert fewer["runs"][0]["cases"] == 1


def test_a_run_that_was_stopped_is_named_beside_the_others(folder: Path, tmp_path: Path) -> None:
    evaluated(folder, "--results", tmp_path)
    stopped = tmp_path / "eval" / "run_001"
    stopped.mkdir()
    (stopped / "params.json").write_text('{"command": "errata eval pico"}', encoding="utf-8")
    found = told("summarize", tmp_path)
    assert len(found["runs"]) == 1
    assert found["unfinished"] == [str(stopped)]
    result = CliRunner().invoke(app, ["summarize", str(tmp_path)])
    assert "run_001 is unfinished" in " ".join(result.stderr.split())


def test_a_dataset_has_to_be_named(folder: Path) -> None:
    with pytest.raises(ErrataError, match="no dataset is named"):
        told("eval", folder / "model")


def test_datasets_are_listed_with_their_sources() -> None:
    rows = {row["dataset"]: row["source"] for row in told("ls", "datasets")["datasets"]}
    assert Path(rows["demo"]).name == "cases.jsonl"
    assert rows["counterfact"].startswith("https://")
    assert {"zsre", "multi-counterfact", "known", "demo-zsre"} <= set(rows)


def test_a_list_of_datasets_says_which_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    fetched = tmp_path / "datasets" / "zsre_mend_eval.json"
    fetched.parent.mkdir()
    fetched.write_text("[]", encoding="utf-8")
    rows = told("ls", "datasets")["datasets"]
    assert all(list(row) == ["dataset", "what", "source", "file"] for row in rows)
    files = {row["dataset"]: row["file"] for row in rows}
    assert files["zsre"] == files["zsre-alt"] == str(fetched)
    assert files["counterfact"] is files["known"] is None
    assert Path(files["demo"]).is_file()
    assert called("ls", "datasets").count(" yes ") == 2 + sum(name[:4] == "demo" for name in files)


@pytest.mark.parametrize("verb", ["eval", "summarize"])
def test_help_needs_no_torch(verb: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['errata', sys.argv[1], '--help']\n"
        "from errata.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_an_edit_chooses_its_cases_like_an_evaluation(folder: Path, tmp_path: Path) -> None:
    broken = {**CASES[0], "requested_rewrite": {**CASES[0]["requested_rewrite"], "subject": ""}}
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(map(json.dumps, [broken, *CASES])), encoding="utf-8")
    settings = tmp_path / "hparams.json"
    settings.write_text('{"layers": [1], "v_num_grad_steps": 2}', encoding="utf-8")
    common = ["--dataset", path, "--skip-invalid", "--limit", "2", "--seed", "3"]
    edit = ["--method", "rome", "--no-second-moment", "--hparams", settings]
    edited = told("edit", folder / "model", *common, *edit, "--results", tmp_path)
    asked = told("eval", folder / "model", *common, "--results", tmp_path)
    ids = [
        [json.loads(line)["case_id"] for line in (Path(run) / "cases.jsonl").open("rb")]
        for run in (edited["run"], asked["run"])
    ]
    assert ids[0] == ids[1] != [0, 1]
