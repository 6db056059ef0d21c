"""A sweep of edits over blocks: the same figures as one edit run a block, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errata.data.case import Case
from errata.experiments.block_sweep import BlockScores, Sweep, sweep_blocks
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.experiments.sweep_vs_trace import variance_explained
from errata.methods import METHODS
from errata.metrics.scores import Score
from errata.patches.edited_model import EditedModel
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
        plan = EditPlan(batch_size=1)
        run = run_edits(other, CASES, method, moments_of("llama"), plan, tmp_path / str(block))
        assert one.summary == run.summary["after"] and found.before == run.summary["before"]
        first = run.after.scores[0][0]
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
    assert found.best is None or accuracy[found.best] == max(accuracy.values())
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


def score(value: float, low: float, high: float) -> Score:
    return Score(value=value, low=low, high=high, n=50)


def swept(*blocks: tuple[int, Score, float], before: float | None = None) -> Sweep:
    """A sweep with, per block, its score and how far it spares the subjects' other facts."""
    found = Sweep(Path("run"), "ROME")
    if before is not None:
        found.before = {"score": score(before, before, before)}
    for block, worth, spared in blocks:
        known = {"efficacy": score(1.0, 0.9, 1.0), "score": worth}
        known["same_subject_accuracy"] = score(spared, spared, spared)
        found.blocks[block] = BlockScores(known, {})
    return found


def test_where_edits_work_alike() -> None:
    top, close, less = score(0.98, 0.93, 1.0), score(0.977, 0.92, 1.0), score(0.95, 0.85, 0.99)
    poor = score(0.3, 0.2, 0.4)
    found = swept((0, top, 0.8), (2, less, 1.0), (3, close, 0.9), (5, poor, 1.0))
    assert found.alike == (0, 2, 3) and found.best == 3
    assert "equally well at blocks 0, 2, 3: score 98 [92, 100] %" in found.verdict
    assert "of blocks 0, 3, which score highest, block 3 preserves" in found.verdict
    found = swept((0, top, 0.8), (2, less, 1.0), (5, poor, 1.0))
    assert found.best == 0 and found.verdict.endswith("highest at block 0")
    found = swept((0, top, 0.8), (5, poor, 1.0))
    assert found.verdict == "edits work best at block 0: score 98 [93, 100] %"


def test_edits_that_did_nothing_are_not_alike_those_that_worked() -> None:
    """Intervals of few facts overlap, and what changed nothing spares every other fact."""
    worked, nothing = score(1.0, 0.51, 1.0), score(0.0, 0.0, 0.59)
    found = swept((0, worked, 0.9), (3, worked, 0.95), (4, nothing, 1.0), (5, nothing, 1.0))
    assert found.alike == (0, 3) and found.best == 3
    assert "of them block 3 preserves the subjects' other facts best" in found.verdict


@pytest.mark.parametrize("before", [None, 0.0, 0.1])
def test_where_no_edit_works_no_block_is_named(before: float | None) -> None:
    value = before or 0.0
    nothing = score(value, max(0.0, value - 0.05), value + 0.24)
    found = swept((4, nothing, 1.0), (5, nothing, 0.9), before=before)
    assert found.alike == () and found.best is None and found.as_json()["best"] is None
    assert found.verdict.startswith("edits work at none of these blocks")
    assert f"at most {100 * value:.0f} [" in found.verdict
    assert (f"{100 * value:.0f} % before any edit" in found.verdict) == (before is not None)


def test_what_the_block_and_the_trace_explain() -> None:
    source = np.random.default_rng(0)
    effects = source.random((40, 3))
    by_block = np.tile([0.1, 0.5, 0.9], (40, 1))
    found = variance_explained(effects, by_block, (0, 1, 2))
    assert found.by_block == pytest.approx(1) and found.with_trace == pytest.approx(1)
    assert found.by_trace < 0.2 and found.within == {}
    found = variance_explained(effects, 2 * effects, (3, 4, 5))
    assert found.by_trace == pytest.approx(1) and found.by_block < 0.2
    assert found.within == pytest.approx({3: 1.0, 4: 1.0, 5: 1.0})
    noise = variance_explained(effects, source.random((40, 3)), (0, 1, 2))
    assert noise.by_block <= noise.with_trace < 0.2
