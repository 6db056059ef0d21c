"""The plan of a run: what is the default, how it is put in words, and where it is shown."""

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
from errata.data.case import Case
from errata.experiments.costs.recipe import recipe_costs
from errata.experiments.edit_plan import EditPlan, matrix_words, plan_for, stack_words
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.recipe.run import Surroundings, run_recipe
from errata.experiments.recipe.schema import Recipe, recipe_of
from errata.experiments.results import read_runs
from errata.methods import METHODS, ClosedForm
from errata.methods.closed_form.cost import patch_bytes
from errata.methods.edit import compute_edit
from errata.patches.weight_patch import WeightPatch
from laws.bench import PREFIXES, edited_model, moments_of, quick
from tiny import FACTS, tiny_model, tiny_tokenizer

COUNT = len(FACTS)
ALONE = f"{COUNT} facts, each alone on the unedited model"
CASES = [
    Case(request=fact, target_true="Pell", neighbours=("The sea is in",), paraphrases=("So,",))
    for fact in FACTS
]
SETTINGS: dict[str, Any] = {
    "blocks": [1],
    "second_moment": False,
    "search": {"steps": 2},
    "contexts": {"prefixes": list(PREFIXES)},
}
QUICK = ("--blocks", "1", "--steps", "2", "--prefixes", "texts.txt", "--no-second-moment")
ROME = ("--method", "rome", *QUICK)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pico model, the same facts as a dataset and as requests, in the present folder."""
    tiny_model("llama").save_pretrained(tmp_path / "pico")
    tiny_tokenizer().save_pretrained(tmp_path / "pico")
    rows = [fact.model_dump(exclude_defaults=True) for fact in FACTS]
    cases = [row | {"target_true": "Hesk", "neighbours": ["Marrow lies in"]} for row in rows]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)), encoding="utf-8")
    (tmp_path / "texts.txt").write_text(PREFIXES[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def called(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def told(*arguments: str | Path) -> Any:
    return json.loads(called(*arguments, "--json"))


def first_line(shown: str) -> str:
    """Return the line after that of the verb."""
    return shown.splitlines()[1]


@pytest.mark.parametrize("method_name", METHODS)
def test_only_a_method_of_single_facts_edits_a_dataset_apart(method_name: str) -> None:
    method = METHODS[method_name]
    alone = EditPlan(batch_size=1, by_default=True) if method_name == "rome" else EditPlan()
    assert plan_for(method, None, False, dataset=True) == alone
    assert plan_for(method, None, False, dataset=False) == EditPlan()
    assert plan_for(method, None, False, dataset=True, one_model=True) == EditPlan()
    for size, sequential in ((1, False), (20, False), (None, True), (1, True)):
        given = EditPlan(batch_size=size, sequential=sequential)
        assert plan_for(method, size, sequential, dataset=True) == given


@pytest.mark.parametrize(
    ("plan", "count", "below", "words"),
    [
        ((None, False), 1, 0, "1 fact, alone on the unedited model"),
        ((1, False), 1, 2, "1 fact, alone on the model with 2 patches"),
        ((None, False), 100, 0, "100 facts in one batch"),
        ((100, True), 100, 0, "100 facts in one batch"),
        ((None, False), 100, 1, "100 facts in one batch on the model with 1 patch"),
        ((1, False), 184, 0, "184 facts, each alone on the unedited model"),
        ((1, True), 184, 0, "184 facts, one at a time, in sequence"),
        ((10, True), 100, 0, "100 facts in 10 batches of 10, in sequence"),
        ((10, False), 100, 0, "100 facts in 10 batches of 10, each on the unedited model"),
        ((40, False), 100, 0, "100 facts in 3 batches of up to 40, each on the unedited model"),
        ((10, True), 20, 1, "20 facts in 2 batches of 10, in sequence, starting on the model "
                            "with 1 patch"),
        ((1, False), None, 0, "each alone on the unedited model"),
        ((10, True), None, 0, "in batches of 10, in sequence"),
        ((None, False), None, 0, "in one batch"),
    ],
)  # fmt: skip
def test_a_plan_in_words(
    plan: tuple[int | None, bool], count: int | None, below: int, words: str
) -> None:
    assert EditPlan(batch_size=plan[0], sequential=plan[1]).words(count, below) == words


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((), "the unedited model"),
        ((1,), "1 fact, alone on the unedited model"),
        ((100,), "100 facts in one batch"),
        ((10, 10, 10), "30 facts in 3 batches of 10, in sequence"),
        ((1, 1), "2 facts, one at a time, in sequence"),
        ((5, 10), "15 facts in 2 batches, in sequence"),
        ((5, 0), "a stack of 2 patches"),
        ((0,), "a stack of 1 patch"),
    ],
)
def test_a_stack_of_patches_in_words(sizes: tuple[int, ...], words: str) -> None:
    assert stack_words(sizes) == words


def test_a_plan_is_stored_as_before() -> None:
    plan = plan_for(METHODS["rome"], None, False, dataset=True)
    assert plan.model_dump() == {"batch_size": 1, "sequential": False}


def test_rome_edits_each_fact_of_a_dataset_alone(folder: Path) -> None:
    """Every patch is the one that the fact gets when nothing else is edited.

    In float64: the products of a batch round otherwise than those of a single search.
    """
    found = told("edit", "pico", "--dataset", "cases.jsonl", "--dtype", "float64", *ROME)
    assert (found["plan"], len(found["patches"])) == (ALONE, COUNT)
    assert found["answers"] == [] and found["summary"]["efficacy"]["n"] == COUNT
    for path, fact in zip(found["patches"], FACTS, strict=True):
        patch = WeightPatch.load(path)
        (request,) = patch.provenance.requests
        assert (request.text, request.target) == (fact.text, fact.target)
        assert not patch.provenance.parents
        method = METHODS["rome"].of(patch.provenance.settings)
        alone = compute_edit(edited_model("llama", dtype=torch.float64), [fact], method, moments={})
        assert isinstance(alone, WeightPatch)
        for name, update in patch.updates.items():
            assert torch.allclose(update.delta(), alone.updates[name].delta(), atol=1e-5)


@pytest.mark.parametrize(
    ("how", "patches", "words"),
    [
        (("--requests", "facts.jsonl", *ROME), 1, f"{COUNT} facts in one batch"),
        (("--dataset", "cases.jsonl", *ROME, "--batch-size", str(COUNT)), 1,
         f"{COUNT} facts in one batch"),
        (("--dataset", "cases.jsonl", *ROME, "--batch-size", "2", "--sequential"), 2,
         "4 facts in 2 batches of 2, in sequence"),
        (("--dataset", "cases.jsonl", "--limit", "1", *ROME), 1,
         "1 fact, alone on the unedited model"),
    ],
)  # fmt: skip
def test_a_plan_that_was_asked_for_is_kept(
    how: tuple[str, ...], patches: int, words: str, folder: Path
) -> None:
    found = told("edit", "pico", *how)
    assert (found["plan"], len(found["patches"])) == (words, patches)
    assert told("edit", "pico", *how, "--dry-run")["plan"][1] == words


def test_the_plan_stands_first_wherever_scores_are_shown(folder: Path) -> None:
    edit = ("edit", "pico", "--dataset", "cases.jsonl", *ROME)
    assert first_line(called(*edit)) == f"* {ALONE}"
    assert called(*edit, "--dry-run").splitlines()[2] == f"* {ALONE}"
    run = folder / "results" / "ROME" / "run_000"
    assert json.loads((run / "summary.json").read_text("utf-8"))["plan"] == ALONE
    assert (run / "report.md").read_text("utf-8").splitlines()[2] == f"{ALONE}."
    assert first_line(called("summarize", run)) == f"* ROME/run_000: {COUNT} cases; {ALONE}"

    patch = run / "patch_0000.safetensors"
    ask = ("eval", "pico", "--patch", patch, "--dataset", "cases.jsonl", "--results", "results")
    assert first_line(called(*ask)) == "* 1 fact, alone on the unedited model"
    shown = called("summarize", "results")
    assert f"* ROME/run_000: {ALONE}\n" in shown
    assert "* eval/run_000: 1 fact, alone on the unedited model\n" in shown
    plans = {run["run"]: run["plan"] for run in told("summarize", "results")["runs"]}
    assert sorted(plans.values()) == ["1 fact, alone on the unedited model", ALONE]

    sweep = ("sweep-blocks", "pico", "--dataset", "cases.jsonl", *ROME, "--plot", "none")
    assert first_line(called(*sweep)).startswith(f"* {ALONE}, at each block")
    report = folder / "results" / "sweep" / "run_000" / "report.md"
    assert report.read_text("utf-8").splitlines()[2] == f"{ALONE}, at each block."


def test_the_plan_of_an_earlier_run_is_read_from_its_params(folder: Path) -> None:
    called("edit", "pico", "--dataset", "cases.jsonl", *ROME)
    path = folder / "results" / "ROME" / "run_000" / "summary.json"
    old = json.loads(path.read_text("utf-8"))
    del old["plan"], old["advice"]
    path.write_text(json.dumps(old), encoding="utf-8")
    assert [run.plan for run in read_runs(folder / "results")] == [ALONE]
    (path.parent / "params.json").write_text("[]", encoding="utf-8")
    assert [run.plan for run in read_runs(folder / "results")] == [None]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("case_3.json", "case_4.json"), "2 facts, each alone on the unedited model"),
        (("10_edits-case_3.json",), "1 fact in batches of 10, in sequence or each on the unedited "
                                    "model: the files do not say"),
        (("10_edits-case_3.json", "2_edits-case_4.json"), None),
    ],
)  # fmt: skip
def test_the_plan_of_a_published_run_is_in_its_file_names(
    names: tuple[str, ...], words: str | None, tmp_path: Path
) -> None:
    likely = [{"target_new": 1.0, "target_true": 2.0}]
    for number, name in enumerate(names):
        case = {"case_id": number, "post": {"rewrite_prompts_probs": likely}}
        (tmp_path / name).write_text(json.dumps(case), encoding="utf-8")
    (run,) = read_runs(tmp_path)
    assert run.plan == words
    if words:
        title = first_line(called("summarize", tmp_path, "--published"))
        assert title.endswith(f"; {words}")


@contextmanager
def no_bar(title: str) -> Iterator[Any]:
    yield lambda done, total: None


def recipe(**stages: Any) -> Recipe:
    edit = {"dataset": "cases.jsonl", "method": "rome", "settings": SETTINGS}
    return recipe_of({"model": "pico", "edit": edit, **stages})


@pytest.mark.parametrize(
    ("stages", "patches", "words"),
    [({}, COUNT, ALONE), ({"eval": {}}, 1, f"{COUNT} facts in one batch")],
    ids=["edit", "edit and eval"],
)
def test_a_recipe_edits_apart_unless_it_needs_one_model(
    stages: dict[str, Any], patches: int, words: str, folder: Path
) -> None:
    around = Surroundings(folder / "results", folder, no_bar, [].append)
    read = recipe(**stages)
    edited, costs = recipe_costs(read, around)
    done = run_recipe(read, around)
    edit = done.stages["edit"]
    assert (edit["plan"], len(edit["patches"])) == (words, patches)
    (solve,) = (cost for cost in costs if cost.what == "edit: solve")
    method = METHODS["rome"].of(SETTINGS)
    assert isinstance(method, ClosedForm)
    assert solve.disk == patches * patch_bytes(edited.model, method, COUNT // patches)
    report = (done.folder / "report.md").read_text("utf-8")
    assert f"## edit: ROME/run_000\n\n{words}\n" in report
    (folder / "recipe.yaml").write_text(read.model_dump_json(exclude_defaults=True), "utf-8")
    shown = called("run", "recipe.yaml")
    assert all(f"* {stage['plan']}\n" in shown for stage in done.stages.values())
    lines = told("run", "recipe.yaml", "--dry-run")["plan"]
    assert lines[1] == "edit: " + words.removeprefix(f"{COUNT} facts").removeprefix(",").strip()


def die_after(count: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process die before the update after `count` of them."""
    calls, real = [], METHODS["rome"].updates

    def updates(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) > count:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(METHODS["rome"], "updates", updates)


def run(plan: EditPlan, results: Path) -> Run:
    method = quick("rome", contexts={"prefixes": PREFIXES[:1]})
    return run_edits(edited_model("llama"), CASES, method, moments_of("llama"), plan, results)


def test_a_stopped_run_of_an_earlier_version_resumes_as_it_was_begun(tmp_path: Path) -> None:
    by_default = plan_for(METHODS["rome"], None, False, dataset=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(0, patch)
        run(EditPlan(), tmp_path)
    asked = run(EditPlan(batch_size=1), tmp_path)
    assert (asked.folder.name, len(asked.patches)) == ("run_001", COUNT)
    resumed = run(by_default, tmp_path)
    assert (resumed.folder.name, resumed.resumed, len(resumed.patches)) == ("run_000", True, 1)
    assert resumed.plan == EditPlan() and resumed.plan_words == f"{COUNT} facts in one batch"
    fresh = run(by_default, tmp_path)
    assert (fresh.folder.name, fresh.resumed, len(fresh.patches)) == ("run_002", False, COUNT)


def test_a_stopped_run_of_single_edits_resumes(tmp_path: Path) -> None:
    by_default = plan_for(METHODS["rome"], None, False, dataset=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(2, patch)
        run(by_default, tmp_path)
    resumed = run(by_default, tmp_path)
    assert (resumed.folder.name, resumed.resumed, len(resumed.patches)) == ("run_000", True, COUNT)


def test_conflicting_requests_are_alike_only_in_a_batch(folder: Path) -> None:
    """Facts edited alone may contradict each other; those of one model may not."""
    row = FACTS[0].model_dump(exclude_defaults=True)
    other = {**row, "target": "Tarn"}
    lines = "\n".join(map(json.dumps, (row, other)))
    (folder / "two.jsonl").write_text(lines, encoding="utf-8")
    assert len(told("edit", "pico", "--dataset", "two.jsonl", *ROME)["patches"]) == 2
    with pytest.raises(ErrataError, match="different targets"):
        called("edit", "pico", "--dataset", "two.jsonl", *ROME, "--batch-size", "2")


def test_a_survival_matrix_says_that_it_tunes_one_model() -> None:
    assert matrix_words((10, 100)).startswith("10 facts or 100 facts in one batch, so that one ")
