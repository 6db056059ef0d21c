"""A metric that is added as one file and one line shows up wherever scores are shown.

The metric is the example of CONTRIBUTING.md, so that the page is executed, too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.data.case import Case
from errata.experiments.costs.editing import edit_costs, evaluation_cost
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.eval_run import evaluate_model
from errata.experiments.results import read_runs
from errata.metrics.base import EvalSettings, LikelihoodMetric, Metric, Pair
from errata.metrics.likelihood import Likelihood
from errata.metrics.prompts import prompts_of
from errata.metrics.registry import METRICS, prepared_metrics, score_metrics
from errata.metrics.teacher_forced import score_cases
from errata.patches.edited_model import EditedModel
from laws.bench import PREFIXES, edited_model, moments_of, patch_of, quick
from laws.test_work import counted
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
CASES = [Case(request=fact, target_true="Hesk", neighbours=("Marrow lies in",)) for fact in FACTS]


def example() -> str:
    """The code of CONTRIBUTING.md's section on metrics."""
    section = PAGE.read_text("utf-8").partition("## Add a metric\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return dedent(code)


@pytest.fixture
def target_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metric[Any]:
    """The example as a file of its own and a line in METRICS."""
    path = tmp_path / "target_rank.py"
    path.write_text(example(), encoding="utf-8")
    spec = spec_from_file_location("target_rank", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "target_rank", module)
    spec.loader.exec_module(module)
    metric: Metric[Any] = module.TargetRank()
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pico model, a patch for it, and cases, all on disk."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    patch_of("llama", "rome").save(tmp_path / "patch.safetensors")
    lines = [case.model_dump_json(exclude_defaults=True) for case in CASES]
    (tmp_path / "cases.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def called(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_example_measures_what_it_says(target_rank: Metric[Any]) -> None:
    edited = edited_model("llama")
    ranks = target_rank.score(edited, CASES)
    likeliest = [scores[0].new.correct[0] for scores in score_cases(edited, CASES)]
    assert [rank == 1 for rank in ranks] == likeliest
    assert all(isinstance(rank, int) and rank >= 1 for rank in ranks)
    assert len(set(ranks)) > 1


def test_a_new_metric_shows_up_everywhere(
    target_rank: Metric[Any], folder: Path, tmp_path: Path
) -> None:
    results, name = tmp_path / "results", target_rank.name
    asked = ("eval", folder / "model", "--dataset", folder / "cases.jsonl")
    patched = (*asked, "--patch", folder / "patch.safetensors", "--allow-base")
    found = json.loads(called(*patched, "--results", results, "--json"))["summary"]
    assert set(found[name]) == {"value", "low", "high", "n"}
    assert set(found["before"][name]) == set(found[name])

    shown = called(*patched)
    row = next(line for line in shown.splitlines() if line.split()[:1] == [name])
    assert f"{found[name]['value']:.3g} [" in row and "%" not in row  # an amount, not a share
    run = results / "eval" / "run_000"
    stored = json.loads((run / "summary.json").read_text("utf-8"))
    assert stored == {**found, "plan": "2 facts in one batch"}
    report = (run / "report.md").read_text("utf-8")
    assert f"## {target_rank.title}" in report and f"| {name} | " in report
    first = json.loads((run / "cases.jsonl").read_text("utf-8").splitlines()[0])
    assert set(first[name]) == {"before", "after", "in_prompt"}

    (again,) = json.loads(called("summarize", results, "--json"))["runs"]
    assert again["summary"] == found
    assert name in called("summarize", run)
    called(*patched, "--limit", "2", "--results", results)
    beside = called("summarize", results)
    assert f"* {target_rank.title}\n" in beside and name in beside

    recipe = {
        "model": {"name": str(folder / "model")},
        "eval": {"dataset": str(folder / "cases.jsonl")},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = json.loads(called("run", folder / "recipe.yaml", "--results", tmp_path / "r", "--json"))
    assert done["stages"]["eval_0"]["summary"][name] == found["before"][name]
    made = (tmp_path / "r" / "recipe" / "run_000" / "report.md").read_text("utf-8")
    value = found["before"][name]["value"]
    assert f"| {name} | {value:.3g} [" in made


EDITING = {
    "search": {"steps": 2, "max_steps": 2},
    "contexts": {"prefixes": list(PREFIXES)},
    "blocks": [1, 2],
}


def check_edited(run: Path, name: str, title: str, summary: dict[str, Any]) -> None:
    """See a metric in every file of a finished run of edits."""
    stored = json.loads((run / "summary.json").read_text("utf-8"))
    assert stored.pop("plan").startswith(f"{len(CASES)} facts")
    assert "edits failed" in stored.pop("advice")
    assert stored.pop("stopped_short") == list(range(1, len(CASES) + 1))
    assert stored == summary
    assert set(summary[name]) == set(summary["before"][name]) == {"value", "low", "high", "n"}
    assert summary[name]["n"] == len(CASES)
    report = (run / "report.md").read_text("utf-8")
    assert (
        f"## {title}" in report and f"| {name} | {summary['before'][name]['value']:.3g} [" in report
    )
    rows = [json.loads(line) for line in (run / "cases.jsonl").read_text("utf-8").splitlines()]
    values = [[row[name][half] for row in rows] for half in ("before", "after")]
    for half, found in zip((summary["before"], summary), values, strict=True):
        assert sum(found) / len(found) == pytest.approx(half[name]["value"])
    (read,) = read_runs(run)
    assert [case.outcome("after", name) for case in read.cases] == values[1]


def test_a_new_metric_shows_up_in_edits(
    target_rank: Metric[Any], folder: Path, tmp_path: Path
) -> None:
    name, title, results = target_rank.name, target_rank.title, tmp_path / "results"
    (folder / "corpus.txt").write_text("\n".join(SENTENCES * 8), encoding="utf-8")
    asked = ("edit", folder / "model", "--dataset", folder / "cases.jsonl", "--method", "memit")
    asked = (*asked, "--blocks", "1,2", "--corpus", folder / "corpus.txt")
    asked = (*asked, "--steps", "2", "--max-steps", "2")
    found = json.loads(called(*asked, "--results", results, "--json"))
    check_edited(Path(found["run"]), name, title, found["summary"])
    assert f" {name} " in called(*asked, "--results", results)

    stage = {"dataset": str(folder / "cases.jsonl"), "method": "memit", "batch_size": 2}
    stage |= {"corpus": str(folder / "corpus.txt"), "settings": EDITING}
    recipe = {"model": {"name": str(folder / "model")}, "edit": stage}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    told = json.loads(called("run", folder / "recipe.yaml", "--results", tmp_path / "r", "--json"))
    done = told["stages"]["edit"]
    check_edited(tmp_path / "r" / done["run"], name, title, done["summary"])
    made = (tmp_path / "r" / "recipe" / "run_000" / "report.md").read_text("utf-8")
    assert f"| {name} | {done['summary']['before'][name]['value']:.3g} [" in made


@pytest.mark.parametrize("batch_size", [1, None])
def test_interrupted_edits_of_an_earlier_version_resume(
    batch_size: int | None,
    target_rank: Metric[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their parts hold teacher-forced scores alone; those are read, and new parts have all."""

    def edits() -> Run:
        method, plan = quick("memit"), EditPlan(batch_size=batch_size)
        return run_edits(edited_model("llama"), CASES, method, moments_of("llama"), plan, tmp_path)

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(quick("memit")), "edit", dies)
        edits()
    (part,) = tmp_path.glob("*/run_000/parts/before_0000.json")
    stored = json.loads(part.read_text("utf-8"))
    old = [record["scores"] for record in stored]
    old[0][0]["new"]["nll"] = 12.5  # so that it shows whether the part was read
    part.write_text(json.dumps(old), encoding="utf-8")
    run = edits()
    assert run.resumed and run.before.scores[0][0].new.nll == 12.5
    assert target_rank.name not in run.summary["before"]
    assert run.summary["after"][target_rank.name].n == len(CASES)


def test_an_interrupted_run_reads_a_new_metric_back(
    target_rank: Metric[Any], tmp_path: Path
) -> None:
    edited = edited_model("llama")
    first = evaluate_model(edited, CASES, parts=tmp_path)
    assert list(tmp_path.iterdir())
    again = evaluate_model(edited, CASES, parts=tmp_path)
    assert again.as_json() == first.as_json()
    assert target_rank.name in first.after.summary


class Reversal(LikelihoodMetric[list[bool]]):
    """Shares its first pair with the teacher-forced scores, and adds none that is longer."""

    name: ClassVar[str] = "said"

    def pairs(self, case: Case) -> Sequence[Pair]:
        return [Pair(case.request.text, case.request.answer)]

    def outcome(self, case: Case, found: Sequence[Likelihood]) -> list[bool]:
        return [each.likeliest for each in found]


def test_costs_count_what_a_new_metric_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that another metric asks as well is free; a longer one is counted."""

    class Further(Reversal):
        name: ClassVar[str] = "further"

        def pairs(self, case: Case) -> Sequence[Pair]:
            return [Pair(f"{case.request.text} and {case.request.text}", case.request.answer)]

    def flops() -> list[float]:
        edited = edited_model("llama")
        evaluation = evaluation_cost(edited, CASES, EvalSettings(), halves=1)
        edits = edit_costs(edited, quick("memit"), CASES, EditPlan())
        return [evaluation.flops, edits[-1].flops / 3]

    alone = flops()
    monkeypatch.setitem(METRICS, Reversal.name, Reversal())
    shared = flops()
    monkeypatch.setitem(METRICS, Further.name, Further())
    assert alone[0] == alone[1]
    assert max(shared) < 1.1 * alone[0]
    assert min(flops()) > 1.2 * max(shared)


def test_metrics_on_likelihoods_share_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    edited = edited_model("llama")
    with counted(edited.model) as alone:
        score_cases(edited, CASES)
    monkeypatch.setitem(METRICS, Reversal.name, Reversal())
    metrics = prepared_metrics(CASES, EvalSettings())
    assert [metric.name for metric in metrics] == ["scores", "said"]
    with counted(edited.model) as both:
        found = score_metrics(metrics, edited, CASES)
    assert both.blocks == alone.blocks
    assert found.summary["said"].model_dump() == found.summary["efficacy_accuracy"].model_dump()
    assert found.tables["teacher-forced"]["said"] == found.summary["said"]


@pytest.mark.parametrize("settings", [EvalSettings(), EvalSettings(generate=True, text_tokens=40)])
def test_every_metric_asks_what_the_edits_render(settings: EvalSettings) -> None:
    """The model gets what `EditedModel.rendered` returns; records hold the plain prompts."""

    class Prefixed(EditedModel):
        def rendered(self, prompt: str) -> str:
            return f"The sea. {prompt}"

    case = CASES[0].with_values(generation_prompts=("The sea is",))
    plain = edited_model("llama")
    prefixed = Prefixed(plain.model, plain.tokenizer, plain.name)
    found, usual = (
        score_metrics(prepared_metrics([case], settings), edited, [case])
        for edited in (prefixed, plain)
    )
    for name, outcomes in found.by_metric.items():
        assert outcomes != usual.by_metric[name], name
    prompts = [prompt.text for prompt in prompts_of(case)]
    assert [score.prompt for score in found.by_metric["scores"][0]] == prompts
    if settings.generate:
        assert [answer.prompt for answer in found.by_metric["answers"][0]] == prompts
        (text,) = found.by_metric["texts"][0].texts
        assert text.startswith("The sea is")
