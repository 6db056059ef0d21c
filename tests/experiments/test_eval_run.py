"""An evaluation that was stopped and begun again ends like one that was not, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.data.case import Case
from errata.experiments import scoring
from errata.experiments.eval_run import Evaluation, run_evaluation
from errata.metrics.base import EvalSettings
from errata.patches.edited_model import EditedModel
from laws.bench import edited_model, patch_of
from tiny import FACTS

CASES = [
    Case(
        request=fact,
        target_true="Hesk",
        paraphrases=("So,",),
        neighbours=("Marrow lies in",),
        generation_prompts=(f"{fact.subject} is", f"{fact.subject} has"),
        references=("A harbour of the south.", f"{fact.subject} lies there."),
        essence=(f"{fact.subject} lies there.",) if fact is FACTS[0] else (),
    )
    for fact in FACTS
]
ASKING = EvalSettings(generate=True, max_new_tokens=4, text_tokens=16)


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CASES_AT_ONCE", 2)


def patched() -> EditedModel:
    edited = edited_model("llama")
    edited.apply(patch_of("llama", "rome"))
    return edited


def evaluated(results: Path, cases: list[Case] = CASES) -> tuple[Evaluation, Path]:
    return run_evaluation(patched(), cases, ASKING, results, {"name": "ours"})


def outcome(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def stop_after(patch: pytest.MonkeyPatch, groups: int) -> list[int]:
    """Let the process die when so many groups of cases were asked; return what counts them."""
    asked: list[int] = []
    real = scoring.score_metrics

    def score(*arguments: Any) -> Any:
        if len(asked) == groups:
            raise KeyboardInterrupt
        asked.append(len(arguments[2]))
        return real(*arguments)

    patch.setattr(scoring, "score_metrics", score)
    return asked


@pytest.mark.parametrize(("groups", "left"), [(0, 8), (1, 7), (3, 6), (4, 4), (6, 2), (7, 1)])
def test_a_stopped_evaluation_resumed_is_the_uninterrupted_one(
    groups: int, left: int, tmp_path: Path
) -> None:
    straight, expected = evaluated(tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, groups)
        evaluated(tmp_path / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        asked = stop_after(patch, 100)
        found, folder = evaluated(tmp_path / "stopped")
    # Two groups before, two groups of two with the fact in the prompt, one by one, two after.
    assert len(asked) == left, "what was done was done again"
    assert folder.name == "run_000"
    assert outcome(folder) == outcome(expected)
    assert not (folder / "parts").exists()
    assert found.as_json() == straight.as_json()


def test_other_cases_are_another_evaluation(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        evaluated(tmp_path)
    changed = [CASES[0].with_values(target_true="Pell"), *CASES[1:]]
    _, folder = evaluated(tmp_path, changed)
    assert folder.name == "run_001"


def test_texts_of_later_groups_have_seeds_of_their_own(tmp_path: Path) -> None:
    same = [CASES[0].with_values(request=CASES[0].request.with_values(id=i)) for i in range(4)]
    _, folder = evaluated(tmp_path, same)
    lines = (folder / "cases.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["texts"]["after"] for line in lines]
    assert texts[0] != texts[2]
