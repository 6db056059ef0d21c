"""The control with the fact in the prompt is the unedited model, asked after one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.data.case import Case
from errata.experiments.case_records import HALVES
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.experiments.eval_run import Evaluation, evaluate_model
from errata.experiments.results import read_runs
from errata.metrics.base import EvalSettings
from errata.metrics.likelihood import likelihoods
from errata.metrics.teacher_forced import TeacherForced
from laws.bench import edited_model, moments_of, patch_of, quick
from tiny import FACTS

CASES = [
    Case(request=fact, target_true="Hesk", paraphrases=("So,",), neighbours=("Marrow lies in",))
    for fact in FACTS
]


def in_words(case: Case) -> Case:
    """Return a case with the line of its fact written into each of its prompts."""
    line = f"{case.request.text}{case.request.answer}.\n"
    return case.with_values(
        request=case.request.with_values(prompt=line + case.request.prompt),
        paraphrases=[line + text for text in case.paraphrases],
        neighbours=[line + text for text in case.neighbours],
    )


def evaluated(**asking: object) -> Evaluation:
    edited = edited_model("llama")
    edited.apply(patch_of("llama", "rome"))
    return evaluate_model(edited, CASES, EvalSettings.of(asking))


def test_the_fact_stands_before_every_prompt_of_the_unedited_model() -> None:
    found = evaluated()
    assert found.in_prompt is not None
    plain = TeacherForced().score(edited_model("llama"), [in_words(case) for case in CASES])
    for ours, theirs in zip(found.in_prompt.scores, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.new.nll == pytest.approx(other.new.nll, abs=1e-5)
            assert other.prompt.endswith(one.prompt) and other.prompt != one.prompt
    before = TeacherForced().score(edited_model("llama"), CASES)
    assert found.in_prompt.scores != list(before), "the fact changed nothing"


def test_the_context_is_gone_after_an_evaluation() -> None:
    edited = edited_model("llama")
    edited.apply(patch_of("llama", "rome"))
    pair = [(CASES[0].request.text, CASES[0].request.answer)]
    before = likelihoods(edited, pair)
    evaluate_model(edited, CASES)
    assert edited.context == ""
    assert likelihoods(edited, pair) == before


def test_without_controls_there_are_two_columns() -> None:
    found = evaluated(controls=False)
    assert found.in_prompt is None
    assert {columns for columns, _ in found.tables().values()} == {("figure", "before", "after")}
    assert "in_prompt" not in found.as_json()


def test_a_run_of_edits_keeps_its_control(tmp_path: Path) -> None:
    edited = edited_model("llama")
    run = run_edits(
        edited, CASES, quick("rome"), moments_of("llama"), EditPlan(batch_size=1), tmp_path
    )
    assert run.in_prompt is not None
    assert run.summary.keys() == set(HALVES)
    summary = json.loads((run.folder / "summary.json").read_text("utf-8"))
    assert summary["in_prompt"]["efficacy"] == run.in_prompt.summary["efficacy"].model_dump()
    (record,) = read_runs(tmp_path)
    assert record.summary("in_prompt") == run.in_prompt.summary
    assert "fact in prompt" in (run.folder / "report.md").read_text("utf-8")


def test_a_run_without_controls_is_another_run(tmp_path: Path) -> None:
    for asking in (EvalSettings(), EvalSettings(controls=False)):
        edited = edited_model("llama")
        run_edits(
            edited,
            CASES[:1],
            quick("rome"),
            moments_of("llama"),
            EditPlan(),
            tmp_path,
            asking=asking,
        )
    names = sorted(path.name for path in (tmp_path / "ROME").iterdir() if path.is_dir())
    assert names == ["run_000", "run_001"]
    params = [json.loads((tmp_path / "ROME" / n / "params.json").read_text()) for n in names]
    assert "asking" not in params[0] and params[1]["asking"] == {"controls": False}
