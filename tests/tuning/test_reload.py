"""What was tuned loads again, with its patches below it, and is a model like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from errata.cli.main import app
from errata.core.errors import ErrataError, command_hints
from errata.experiments.tuning_run import run_tuning
from errata.methods import METHODS
from errata.patches.edited_model import EditedModel, load
from errata.patches.export import export_lora, export_merged
from errata.reports.loss_figure import mean_label
from laws.bench import apply_edit
from tiny import FACTS
from tuning.pico import ROWS, pico_on_disk, pico_patch, quick, weights


def tuned_run(folder: Path, **given: object) -> tuple[EditedModel, Path]:
    edited = pico_on_disk(folder / "model")
    patch = pico_patch(edited)
    patch.save(folder / "patch.safetensors")
    edited.apply(patch)
    _, run = run_tuning(edited, ROWS, quick(**given), folder / "results")
    return edited, run


def same(one: EditedModel, other: EditedModel) -> bool:
    ours, theirs = weights(one), weights(other)
    return list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "lora"},
        {"method": "full"},
        *(
            pytest.param(given, marks=pytest.mark.slow)
            for given in (
                {"method": "dora"},
                {"reapply": True},
                {"method": "full", "reapply": True},
            )
        ),
    ],
)
def test_a_run_reloads_bit_for_bit(given: dict[str, object], tmp_path: Path) -> None:
    edited, run = tuned_run(tmp_path, **given)
    made = run / ("checkpoint" if given.get("method") == "full" else "adapter")
    name = str(tmp_path / "model")
    for adapter in (run, made):
        found = load(name, adapter=adapter)
        assert same(found, edited)
        assert not found.patches
    patch = tmp_path / "patch.safetensors"
    assert same(load(name, adapter=run, patches=[patch]), edited), "it is not put on twice"
    assert found.name == name, "presets and corpora are found by it"
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["weights"] == edited.base.weights == found.base.weights


def test_a_tuned_model_is_edited_again_and_exported(tmp_path: Path) -> None:
    _, run = tuned_run(tmp_path)
    edited = load(str(tmp_path / "model"), adapter=run)
    method = METHODS["rome"].of(
        {"blocks": (1,), "search": {"steps": 3}, "contexts": {"prefixes": ()},
         "second_moment": False}
    )  # fmt: skip
    apply_edit(edited, [FACTS[2]], method, moments={})
    export_merged(edited, tmp_path / "merged")
    assert same(load(str(tmp_path / "merged")), edited)
    export_lora(edited, tmp_path / "lora", adapter=str(run))
    with edited.without_patches():
        assert same(load(str(tmp_path / "model"), adapter=run), edited)


def test_a_checkpoint_is_edited_by_its_name_and_exported(tmp_path: Path) -> None:
    _, run = tuned_run(tmp_path, method="full")
    model = str(tmp_path / "model")
    result = CliRunner().invoke(
        app,
        ["edit", model, "The {Lantern Bridge} is in", "Quenby", "--adapter", str(run),
         "--method", "rome", "--blocks", "1", "--steps", "2", "--max-steps", "2",
         "--no-second-moment", "--prefix-lengths", "2", "--results", str(tmp_path)],
        catch_exceptions=False,
    )  # fmt: skip
    assert f"Next: errata chat {model} --adapter {run} --patch" in result.stdout
    patch = tmp_path / "ROME" / "run_000" / "patch.safetensors"
    edited = load(model, adapter=run, patches=[patch])
    export_lora(edited, tmp_path / "lora", adapter=str(run))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(run / "checkpoint")


def test_an_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    _, run = tuned_run(tmp_path)
    other = pico_on_disk(tmp_path / "other")
    with torch.no_grad():
        other.model.model.layers[1].mlp.down_proj.weight.add_(0.1)
    other.model.save_pretrained(tmp_path / "other")
    with pytest.raises(ErrataError, match="but this is another model"):
        load(str(tmp_path / "other"), adapter=run)
    assert load(str(tmp_path / "other"), adapter=run, allow_base=True)


def test_the_verb_tells_and_keeps(tmp_path: Path) -> None:
    pico_patch(pico_on_disk(tmp_path / "model")).save(tmp_path / "patch.safetensors")
    rows = [row.model_dump() for row in ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    result = CliRunner().invoke(
        app,
        ["tune", str(tmp_path / "model"), "--patch", str(tmp_path / "patch.safetensors"),
         "--data", str(tmp_path / "rows.json"), "--method", "dora", "--blocks", "edited",
         "--max-steps", "4", "--template", "plain", "--cutoff-len", "40", "--rank", "2",
         "--validation", "2", "--save-every", "2", "--results", str(tmp_path), "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    told = json.loads(result.stdout)
    run, summary = Path(told["run"]), told["summary"]
    assert summary["steps"] == 4
    assert len(summary["moved"]) == 10
    assert summary["validation_loss"] > 0
    assert set(summary["edits_said_after"]) == {"value", "low", "high", "n"}
    assert {"loss.json", "loss.png", "report.md", "adapter"} <= {p.name for p in run.iterdir()}
    curve = json.loads((run / "loss.json").read_text("utf-8"))
    assert [step for step, _ in curve["train"]] == [1, 2, 3, 4]
    assert [step for step, _ in curve["validation"]] == [2, 4]
    assert told["preset"] is None
    assert "| blocks | edited |" in (run / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("given", "said", "rate"),
    [
        ((), "settings: preset demo, except max_steps, validation", "0.002"),
        (("--preset", "study"), "settings: preset study, except max_steps, validation", "0.0002"),
    ],
)
def test_the_preset_that_sets_the_rate_is_named(
    given: tuple[str, ...], said: str, rate: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row.model_dump() for row in ROWS]), encoding="utf-8")
    command = ["tune", "demo", "--data", str(rows), "--max-steps", "1", "--validation", "2"]
    command += ["--results", str(tmp_path), *given]
    told = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert f"* {said}\n" in told
    assert f"{len(ROWS) - 2} rows, 1 step of 16, learning rate {rate}\n" in told


def test_a_batch_that_is_no_multiple_is_told_with_both_sizes() -> None:
    with pytest.raises(ErrataError, match=r"batch_size \(6\) must be a multiple of .*_size \(4\)"):
        quick(batch_size=6, micro_batch_size=4)


def test_a_legend_counts_as_one_should() -> None:
    assert [mean_label(steps) for steps in (1, 2)] == ["mean of 1 step", "mean of 2 steps"]


def test_another_model_given_as_adapter_is_refused(tmp_path: Path) -> None:
    """It was loaded in the place of the model that was named, under that one's name."""
    name = str(tmp_path / "model")
    pico_on_disk(tmp_path / "model")
    pico_on_disk(tmp_path / "other")
    edited, run = tuned_run(tmp_path, method="full")
    export_merged(edited, tmp_path / "merged")
    for folder in ("other", "merged"):
        with pytest.raises(ErrataError, match="is a model, not an adapter") as caught:
            load(name, adapter=tmp_path / folder)
        assert "give it as MODEL" in command_hints(caught.value)[-1]
        assert "errata.load(" in caught.value.hints[-1]
    assert load(name, adapter=run)
    (run / "checkpoint" / "errata.json").unlink()
    with pytest.raises(ErrataError, match="is a model, not an adapter"):
        load(name, adapter=run)
