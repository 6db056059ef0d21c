"""`errata trace`, `lens` and `sweep-blocks` from the command line to the files they keep."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError
from errata.data.datasets import read_cases
from errata.experiments import fact_tracing, trace_run
from errata.methods import METHODS
from errata.methods.presets import resolve_settings
from errata.methods.published_hparams import read_hparams
from errata.patches.edited_model import load
from errata.tracing import causal
from errata.tracing.corruption import kept_deviation
from errata.tracing.trace import Trace

FACT = "The home town of {Anouk Almory} is"
QUICK = ("--samples", "2", "--subject-last-only", "--dtype", "float32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))


def called(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(called(*arguments, "--json"))
    return found


def test_one_fact(tmp_path: Path) -> None:
    found = told("trace", "demo", FACT, *QUICK, "--results", tmp_path, "--recommend")
    assert (found["answer"], found["known"], found["window"]) == ("Malmör", True, 2)
    score = found["scores"]["mlp"][0][0]
    assert set(score) == {"value", "low", "high", "n"} and score["n"] == 2
    assert found["recommended"]["peak"] in found["recommended"]["blocks"]
    folder = Path(found["run"])
    names = {path.name for path in folder.iterdir()}
    assert {"trace.safetensors", "trace.json", "trace.png", "params.json"} <= names
    trace = Trace.load(folder / "trace.safetensors")
    assert trace.as_json()["scores"] == found["scores"]
    for name, method in METHODS.items():
        read = read_hparams(folder / "recommended" / f"{name}.json", method)
        blocks = [found["recommended"]["peak"]] if name == "rome" else None
        assert read.settings["blocks"] == (blocks or found["recommended"]["blocks"])
        assert not read.unused


def test_it_is_shown_as_a_heat_map(tmp_path: Path) -> None:
    shown = called("trace", "demo", FACT, "--samples", "2", "--results", tmp_path, "--plot", "none")
    assert "restored: MLP, 2 blocks" in shown and "Almory* █" in shown
    assert "the paper: 10 of 48" in shown and "250 subjects'" in shown
    assert not list(tmp_path.rglob("*.png"))


def test_an_answer_that_the_model_does_not_give_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["trace", "demo", FACT, "Tarn", *QUICK, "--results", str(tmp_path), "--plot", "none"]
    )
    assert "does not answer 'Tarn' here but 'Malmör';" in result.output


def test_small_probabilities_are_told(tmp_path: Path) -> None:
    verb = ("trace", "demo", FACT, "awake", *QUICK, "--kinds", "mlp", "--plot", "none")
    shown = called(*verb, "--results", tmp_path)
    told_trace = json.loads((tmp_path / "trace" / "run_000" / "trace.json").read_text("utf-8"))
    assert 0 < told_trace["high"] < 5e-4
    assert f"P(answer): {told_trace['high']:.2g} clean" in shown
    assert not re.search(r"\b0\.00+\b", shown), shown


def test_many_facts(tmp_path: Path) -> None:
    verb = ("trace", "demo", "--dataset", "demo-known", "--limit", "3", *QUICK)
    found = told(*verb, "--results", tmp_path, "--plot", "svg,png", "--recommend")
    assert (found["facts"], found["left_out"]) == (3, 0)
    assert len(found["effects"]["mlp"]["last subject token"]) == 8
    assert found["recommended"]["facts"] == 3
    folder = Path(found["run"])
    for name in ("heat.svg", "heat.png", "lines.svg", "lines.png", "report.md"):
        assert (folder / name).stat().st_size > 100
    shown = called(*verb, "--results", tmp_path, "--plot", "none")
    assert "average indirect effect" in shown and "3 facts of demo-known, 0 left out" in shown


def test_no_blocks_are_recommended_where_corruption_took_nothing(tmp_path: Path) -> None:
    verb = ("trace", "demo", "The {Eiffel Tower} is in the city of", "--recommend")
    verb += ("--results", str(tmp_path), "--plot", "none")
    result = CliRunner().invoke(app, verb, catch_exceptions=False)
    assert "corruption did not clearly reduce the answer's probability" in result.stderr
    assert "no blocks are recommended" in result.stderr
    assert "recommended blocks" not in result.stdout and "largest recovery" not in result.stdout
    found = told(*verb)
    assert found["recommended"] is None and "corruption did not" in found["note"]
    assert not list(tmp_path.rglob("recommended"))
    many = ("trace", "demo", "--dataset", "demo-known", "--limit", "2", *QUICK, "--level", "0")
    found = told(*many, "--results", tmp_path, "--recommend", "--plot", "none")
    assert found["recommended"] is None and "corruption did not" in found["note"]
    summary = json.loads((Path(found["run"]) / "summary.json").read_text("utf-8"))
    assert summary["note"] == found["note"]
    assert found["note"] in (Path(found["run"]) / "report.md").read_text("utf-8")


@pytest.mark.parametrize("what", [(FACT,), ("--dataset", "demo-known", "--limit", "2")])
def test_a_finished_trace_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: tuple[str, ...]
) -> None:
    verb = ("trace", "demo", *what, *QUICK, "--results", tmp_path)
    first = told(*verb, "--plot", "none")
    with monkeypatch.context() as patch:
        for module in (causal, fact_tracing, trace_run):
            patch.setattr(module, "trace_question", None)
        shown = called(*verb, "--plot", "svg", "--recommend")
        assert "finished before, in " in shown and "--again repeats it" in shown
        assert told(*verb, "--plot", "none") == first
    folder = Path(first["run"])
    assert list(folder.glob("*.svg")) and (folder / "recommended" / "rome.json").exists()
    again = told(*verb, "--plot", "none", "--again")
    assert again["run"].endswith("run_001") and {**again, "run": first["run"]} == first


def test_another_subject_answer_or_dtype_is_another_trace(tmp_path: Path) -> None:
    def folder(*arguments: str) -> str:
        verb = ("trace", "demo", *arguments, "--samples", "1", "--kinds", "hidden")
        return Path(told(*verb, "--plot", "none", "--results", tmp_path)["run"]).name

    assert folder(FACT, "Tarn") == folder(FACT, "Tarn") == "run_000"
    assert folder("The home town of {Anouk} Almory is", "Tarn") == "run_001"
    assert folder(FACT, "Orwick") == "run_002"
    assert folder(FACT, "Tarn", "--dtype", "bfloat16") == "run_003"


def test_the_noise_is_that_of_the_dataset_and_not_of_the_part_that_is_traced(
    tmp_path: Path,
) -> None:
    def level(*arguments: str) -> float:
        verb = ("trace", "demo", *arguments, *QUICK, "--kinds", "hidden", "--plot", "none")
        run = Path(told(*verb, "--results", tmp_path)["run"])
        return float(json.loads((run / "params.json").read_text("utf-8"))["level"])

    many = ("--dataset", "demo-known", "--limit")
    whole = level(FACT)
    assert level(*many, "1") == level(*many, "2") == level(*many, "2", "--offset", "9") == whole
    assert level(*many, "1", "--seed", "3") == whole == level(FACT, "--limit", "3")
    assert len(list((tmp_path / "cache" / "noise").iterdir())) == 1


def test_the_lens(tmp_path: Path) -> None:
    found = told("lens", "demo", FACT)
    assert found["after"]["said"][-1][-1] == found["answer"] and "before" not in found
    assert len(found["after"]["answers"]) == len(found["tokens"])
    shown = called("lens", "demo", FACT, "Tarn")
    assert "P(answer's first token)" in shown and "subject's last token" in shown


@pytest.mark.slow
def test_the_lens_before_and_after_a_patch(tmp_path: Path) -> None:
    called("edit", "demo", FACT, "Orwick", "--method", "rome", "--results", tmp_path)
    (patch,) = tmp_path.rglob("patch.safetensors")
    found = told("lens", "demo", FACT, "Orwick", "--patch", patch)
    before, after = (found[half]["answers"][-1] for half in ("before", "after"))
    assert before[-1] < 0.1 < 0.5 < after[-1]
    shown = called("lens", "demo", FACT, "Orwick", "--patch", patch)
    assert "before the patches" in shown and "last token, after" in shown


@pytest.mark.slow
def test_a_sweep_beside_a_trace(tmp_path: Path) -> None:
    verb = ("sweep-blocks", "demo", "--limit", "4", "--blocks", "2,6", "--trace")
    found = told(*verb, "--results", tmp_path)
    assert set(found["blocks"]) == {"2", "6"} and found["best"] == 2
    assert set(found["blocks"]["2"]["efficacy"]) == {"value", "low", "high", "n"}
    assert found["trace"]["comparisons"]["efficacy"]["facts"] <= 4
    folder = Path(found["run"])
    params = json.loads((folder / "trace" / "run_000" / "params.json").read_text("utf-8"))
    edited = load("demo")
    of_all = [case.request.subject for case in read_cases("demo")]
    assert params["level"] == 3 * kept_deviation(edited.model, edited.tokenizer, of_all)
    assert (folder / "sweep.png").exists() and (folder / "side_by_side.md").exists()


@pytest.mark.slow
def test_no_block_is_suggested_where_no_edit_works(tmp_path: Path) -> None:
    verb = ("sweep-blocks", "demo", "--limit", "2", "--blocks", "6,7", "--steps", "5", "--trace")
    shown = called(*verb, "--results", tmp_path, "--plot", "none")
    assert "edits work at none of these blocks" in shown and "is not among them" not in shown
    assert "errata edit" not in shown and "report.md" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace", "demo"), "either a fact or a dataset"),
        (("trace", "demo", FACT, "--dataset", "demo-known"), "either a fact or a dataset"),
        (("trace", "demo", FACT, ""), "target: is empty"),
        (("trace", "demo", FACT, "--kinds", "heads"), "kinds"),
        (("trace", "demo", FACT, "--plot", "gif"), "gif"),
        (("trace", "demo", FACT, "--recommend", "--kinds", "hidden"), "trace of MLPs"),
        (("trace", "demo", "The home town of Anouk is"), "not marked"),
        (("sweep-blocks", "gpt2"), "no dataset is named"),
    ],
)
def test_what_is_wrong_is_told(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ErrataError, match=message):
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_guess_by_depth_names_the_trace() -> None:
    _, _, (note,) = resolve_settings(METHODS["memit"], "org/some-model", 24, {})
    assert "blocks 3,4,5,6,7 are a guess" in note
    _, _, (alone,) = resolve_settings(METHODS["rome"], "org/some-model", 24, {})
    assert re.search(r": block \d+ is a guess", alone)
    assert "errata trace org/some-model --dataset NAME --recommend" in note


@pytest.mark.slow
def test_the_page_on_tracing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python as it stands, and every command but the long ones: their flags at least."""
    page = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "tracing.md", "exec"), {})
    assert Trace.load(tmp_path / "fact.npz").answer == "Malmör"
    lines = [line for line in page.splitlines() if line.startswith("    errata ")]
    assert len(lines) >= 4
    for line in lines:
        verb, *arguments = shlex.split(line)[1:]
        command = get_command(app).get_command(None, verb)  # type: ignore[arg-type,attr-defined]
        command.make_context(verb, arguments)
    for picture in re.findall(r"\]\((pictures/.*?)\)", page):
        assert (Path(__file__).parents[2] / "docs" / picture).is_file()
