"""Promise 11, second half: a run that was killed and begun again ends like one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.data.case import Case
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.run_folder import LOCK, run_folder
from errata.methods import METHODS
from errata.patches.edited_model import EditedModel
from laws.bench import edited_model, moments_of, over_methods, quick, weights
from tiny import FACTS

CASES = [
    Case(request=fact, target_true="Pell", neighbours=("The sea is in",), paraphrases=("So,",))
    for fact in FACTS
]
PLANS = {
    "apart": EditPlan(batch_size=1),
    "stacked": EditPlan(batch_size=2, sequential=True),
    "at once": EditPlan(),
}


def run(edited: EditedModel, method_name: str, plan: str, results: Path) -> Run:
    method = quick(method_name, contexts={"prefix_lengths": (2,)}, requests_at_once=2)
    return run_edits(edited, CASES, method, moments_of("llama"), PLANS[plan], results)


def outcome(folder: Path) -> dict[str, bytes]:
    """Return every file of a run, to the byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def kill(patch: pytest.MonkeyPatch, method_name: str, after: int) -> None:
    """Let the process die in the middle of a batch, `after` batches later."""
    calls, real = [], METHODS[method_name].updates

    def updates(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(METHODS[method_name], "updates", updates)


@pytest.mark.parametrize("plan", PLANS)
@over_methods
def test_a_killed_run_resumed_is_the_uninterrupted_run(
    method_name: str, plan: str, tmp_path: Path
) -> None:
    straight_model = edited_model("llama")
    straight = run(straight_model, method_name, plan, tmp_path / "straight")
    batches = len(straight.patches)
    for after in range(batches):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill(patch, method_name, 1 if after else 0)
            run(edited_model("llama"), method_name, plan, tmp_path / "killed")
    torch.manual_seed(9)
    model = edited_model("llama")
    resumed = run(model, method_name, plan, tmp_path / "killed")
    assert resumed.resumed
    assert not straight.resumed
    assert resumed.folder.name == straight.folder.name
    assert outcome(resumed.folder) == outcome(straight.folder)
    assert weights(model.model) == weights(straight_model.model)
    assert resumed.summary == straight.summary


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    first = run(edited_model("llama"), "memit", "at once", tmp_path)
    second = run(edited_model("llama"), "memit", "at once", tmp_path)
    assert (first.folder.name, second.folder.name) == ("run_000", "run_001")
    for name in ("patch.safetensors", "params.json", "cases.jsonl", "summary.json"):
        assert outcome(first.folder)[name] == outcome(second.folder)[name]


@pytest.mark.parametrize("plan", ["apart", "stacked"])
def test_another_run_is_not_taken_for_the_killed_one(plan: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill(patch, "memit", 1)
        run(edited_model("llama"), "memit", plan, tmp_path)
    other = run(edited_model("llama"), "memit", "at once", tmp_path)
    assert other.folder.name == "run_001"
    resumed = run(edited_model("llama"), "memit", plan, tmp_path)
    assert resumed.folder.name == "run_000"


def test_what_a_kill_left_half_written_is_gone_when_the_run_goes_on(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill(patch, "memit", 0)
        run(edited_model("llama"), "memit", "at once", tmp_path)
    (folder,) = tmp_path.glob("MEMIT/run_000")
    nested = folder / "nested"
    nested.mkdir()
    (nested / LOCK).touch()
    half = [folder / ".cases.jsonl.ab_3de7h.part", folder / "parts" / ".x.json.abcdefgh.part"]
    kept = [
        *(folder / "mine.part", folder / ".mine.part", folder / ".a.ABCDEFGH.part"),
        nested / ".cases.jsonl.abcdefgh.part",
        tmp_path / ".cases.jsonl.abcdefgh.part",
    ]
    for path in (*half, *kept):
        path.write_text("half", encoding="utf-8")
    with run_folder(tmp_path, "MEMIT", {"another": "run"}):
        assert all(path.exists() for path in (*half, *kept))
    assert run(edited_model("llama"), "memit", "at once", tmp_path).folder == folder
    assert not any(path.exists() for path in half)
    assert all(path.exists() for path in kept)


def test_nothing_is_taken_from_a_process_that_is_at_work(tmp_path: Path) -> None:
    with run_folder(tmp_path, "eval", {"a": 1}) as (first, _):
        part = first / ".cases.jsonl.abcdefgh.part"
        part.write_text("half", encoding="utf-8")
        with run_folder(tmp_path, "eval", {"a": 1}) as (second, resumed):
            assert second != first
            assert not resumed
        assert part.exists()
