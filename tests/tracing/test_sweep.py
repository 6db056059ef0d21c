"""A sweep of edits over blocks: the same figures as one edit run a block, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errata.case import Case
from errata.methods import METHODS
from errata.model import EditedModel
from errata.report import Score
from errata.runs import Plan, run_edits
from errata.sweep import BlockScores, Sweep, sweep_blocks
from errata.sweep_trace import compare
from laws.bench import edited_model, moments_of, quick, weights
from tiny import FACTS

CASES = [
    Case(request=fact, target_true="Pell", neighbours=("The sea is in",), paraphrases=("So,",))
    for fact in FACTS[:3]
]
CONTEXTS = {"prefixes": ("Well. ",)}


def sweep(edited: EditedModel, results: Path, **how: Any) -> Sweep:
    methods = {block: quick("rome", blocks=(block,), contexts=CONTEXTS) for block in (1, 2)}
    return sweep_blocks(edited, CASES, methods, moments_of("llama"), results, **how)


def test_it_is_a_run_at_every_block(tmp_path: Path) -> None:
    edited = edited_model("llama")
    before = weights(edited.model)
    found = sweep(edited, tmp_path / "sweep")
    assert weights(edited.model) == before and not edited.patches
    for block, one in found.blocks.items():
        method = quick("rome", blocks=(block,), contexts=CONTEXTS)
        other = edited_model("llama")
        plan = Plan(batch_size=1)
        run = run_edits(other, CASES, method, moments_of("llama"), plan, tmp_path / str(block))
        assert one.summary == run.summary["after"] and found.before == run.summary["before"]
        first = run.after[0][0]
        assert one.magnitudes["efficacy"][0] == pytest.approx(first.magnitude)
    told = json.loads((found.folder / "summary.json").read_text("utf-8"))
    assert set(told["blocks"]) == {"1", "2"} and told == found.as_json()
    assert not list(found.folder.rglob("*.safetensors"))


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_stopped_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    straight = sweep(edited_model("llama"), tmp_path / "straight")
    edited, calls, real = edited_model("llama"), [0], METHODS["rome"].updates

    def updates(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["rome"], "updates", updates)
        with pytest.raises(KeyboardInterrupt):
            sweep(edited, tmp_path / "stopped")
    assert not edited.patches
    seen: list[tuple[int, int]] = []
    resumed = sweep(edited, tmp_path / "stopped", progress=lambda *at: seen.append(at))
    assert resumed.folder == tmp_path / "stopped" / "sweep" / "run_000"
    assert resumed.as_json() == straight.as_json() and resumed.blocks == straight.blocks
    assert seen[-1] == (6, 6)


def test_facts_without_a_true_answer_are_swept_by_what_the_model_says(tmp_path: Path) -> None:
    methods = {block: quick("rome", blocks=(block,), contexts=CONTEXTS) for block in (1, 2)}
    bare = [Case(request=fact) for fact in FACTS[:2]]
    found = sweep_blocks(edited_model("llama"), bare, methods, moments_of("llama"), tmp_path)
    assert found.columns == ["efficacy_accuracy"]
    accuracy = {b: one.summary["efficacy_accuracy"].value for b, one in found.blocks.items()}
    assert accuracy[found.best] == max(accuracy.values())
    assert "block" in found.verdict
    assert len(found.table()) == 2


def test_a_sweep_stopped_while_it_is_finished_is_not_done(tmp_path: Path) -> None:
    def stop(found: Sweep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(edited_model("llama"), tmp_path, finish=stop)
    seen: list[Sweep] = []
    again = sweep(edited_model("llama"), tmp_path, finish=seen.append)
    assert again.folder.name == "run_000" and seen == [again]


def test_where_edits_work_alike(tmp_path: Path) -> None:
    def score(value: float, half: float) -> Score:
        return Score(value=value, low=value - half, high=value + half, n=50)

    def found(value: float, spared: float) -> BlockScores:
        named = {"efficacy": score(1.0, 0.1), "score": score(value, 0.05)}
        return BlockScores({**named, "same_subject_accuracy": score(spared, 0.05)}, {})

    swept = Sweep(tmp_path, "ROME", blocks={0: found(0.98, 0.8), 3: found(0.95, 0.9)})
    swept.blocks[5] = found(0.3, 1.0)
    assert swept.alike == (0, 3) and swept.best == 3
    assert "alike at blocks 0, 3" in swept.verdict and "at block 3 they spare" in swept.verdict
    del swept.blocks[3]
    assert swept.best == 0 and swept.verdict == "edits work best at block 0"


def test_what_the_block_and_the_trace_explain() -> None:
    source = np.random.default_rng(0)
    effects = source.random((40, 3))
    by_block = np.tile([0.1, 0.5, 0.9], (40, 1))
    found = compare(effects, by_block, (0, 1, 2))
    assert found.by_block == pytest.approx(1) and found.with_trace == pytest.approx(1)
    assert found.by_trace < 0.2 and found.within == {}
    found = compare(effects, 2 * effects, (3, 4, 5))
    assert found.by_trace == pytest.approx(1) and found.by_block < 0.2
    assert found.within == pytest.approx({3: 1.0, 4: 1.0, 5: 1.0})
    noise = compare(effects, source.random((40, 3)), (0, 1, 2))
    assert noise.by_block <= noise.with_trace < 0.2
