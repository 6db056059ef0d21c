"""What tuning and a matrix will cost, against what PyTorch counts, trains and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

import errata.experiments.costs.tuning
from errata.experiments.costs.tuning import matrix_costs, tuning_cost
from errata.experiments.survival.run import run_survival
from errata.experiments.tuning_run import run_tuning
from errata.statistics.store import Store
from errata.tuning.modules import placed
from errata.tuning.train import tune
from experiments.test_survival import QUESTIONS, fresh, matrix
from laws.bench import found
from tuning.pico import EDITED, ROWS, pico, pico_patch, quick

METHODS = pytest.mark.parametrize("method", ["lora", "dora", "full"])


@METHODS
def test_the_model_is_as_it_was_found(method: str) -> None:
    edited = pico()
    edited.apply(pico_patch(edited))
    before, patches = found(edited.model), list(edited.patches)
    cost = tuning_cost(edited, ROWS, quick(method=method))
    assert found(edited.model) == before
    assert edited.patches == patches
    assert all(parameter.grad is None for parameter in edited.model.parameters())
    assert min(cost[1:]) > 0


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_work_of_a_tuning_is_what_pytorch_counts(model_type: str, tmp_path: Path) -> None:
    """Attention's products and an adapter's own are left out, a third at this size."""
    for method in ("full", "lora"):
        settings = quick(method=method, max_steps=5)
        said = tuning_cost(pico(model_type), ROWS, settings).flops
        with FlopCounterMode(display=False) as counter:
            tune(pico(model_type), ROWS, settings, tmp_path / method)
        assert 0.5 < said / counter.get_total_flops() < 1.25


@METHODS
def test_the_numbers_trained_are_those_counted(method: str, tmp_path: Path) -> None:
    edited, settings = pico(), quick(method=method)
    names = errata.experiments.costs.tuning.moving(edited.model, settings, ())
    said = sum(
        errata.experiments.costs.tuning._trained(edited.model, name, settings) for name in names
    )
    assert said == tune(edited, ROWS, settings, tmp_path / "work").numbers


def test_steps_and_rows_tell_time_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errata.experiments.costs.tuning, "_step_seconds", lambda *_: 2.0)
    settings = quick(max_steps=None, epochs=3)
    cost = tuning_cost(pico(), ROWS, settings)
    steps = 3 * -(-len(ROWS) // 4)
    assert cost.seconds == 2.0 * steps
    assert tuning_cost(pico(), ROWS, settings.with_values(epochs=6)).flops == 2 * cost.flops
    with_checks = tuning_cost(pico(), ROWS, settings.with_values(validation=1, save_every=1))
    assert with_checks.seconds > cost.seconds
    _, folder = run_tuning(pico(), ROWS, quick(method="full", max_steps=1), tmp_path)
    kept = sum(path.stat().st_size for path in (folder / "checkpoint").glob("*.safetensors"))
    said = tuning_cost(pico(), ROWS, quick(method="full", max_steps=1)).disk
    assert said == pytest.approx(kept, rel=0.2)


def test_edited_and_other_blocks_are_known_before_the_edit() -> None:
    edited = pico()
    guarded = quick(blocks="edited", shift_penalty=1.0, reapply=True)
    settings = placed(guarded, EDITED, 4)
    assert (settings.blocks, settings.guards_edits) == ("1,2", False)
    assert placed(quick(blocks="others"), EDITED, 4).blocks == "0,3"
    assert placed(quick(), EDITED, 4).blocks == "all"
    edited.apply(pico_patch(edited))
    assert errata.experiments.costs.tuning.moving(
        edited.model, settings, ()
    ) == errata.experiments.costs.tuning.moving(
        edited.model, quick(blocks="edited"), edited.patches
    )


def test_a_matrix_counts_every_tuning_and_every_model_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, asked = [], []
    monkeypatch.setattr(errata.experiments.costs.tuning, "_step_seconds", lambda *_: 1.0)
    monkeypatch.setattr(
        errata.experiments.costs.tuning,
        "asking_cost",
        lambda edited, questions: errata.experiments.costs.tuning.Cost("questions", 1.0, 1.0, 1, 1),
    )
    small = matrix(seeds=(0, 1), edits=(2, 3))
    costs = {
        cost.what: cost
        for cost in matrix_costs(fresh(), small, QUESTIONS, ROWS, Store(tmp_path / "moments"))
    }
    assert list(costs) == ["edits", "tunings", "questions"]
    real_tune, real_ask = errata.experiments.survival.run.tune, type(QUESTIONS).ask
    monkeypatch.setattr(
        "errata.experiments.survival.run.tune",
        lambda *a, **k: tuned.append(a) or real_tune(*a, **k),
    )
    monkeypatch.setattr(
        type(QUESTIONS), "ask", lambda *a, **k: asked.append(a) or real_ask(*a, **k)
    )
    run_survival(small, fresh, QUESTIONS, ROWS, tmp_path)
    assert costs["questions"].seconds == len(asked)
    assert costs["tunings"].seconds == 2 * len(tuned)  # two steps of a second each
