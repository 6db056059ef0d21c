"""Promise 6: base + exported LoRA says what the patched model says, however PEFT is given it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from errata.core.errors import ErrataError
from errata.patches.edited_model import load
from errata.patches.export import export_lora, export_merged
from errata.patches.lora import served_rank, stacked
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from laws.bench import (
    edited_model,
    over_families,
    over_methods,
    over_shapes,
    patch_of,
    random_patch,
)
from patches.folders import dense, far, logits, saved_base, with_adapter
from tiny import tiny_model


@over_families
@over_methods
def test_a_lora_says_what_the_patch_says(model_type: str, method_name: str, tmp_path: Path) -> None:
    edited = edited_model(model_type)
    before = logits(edited.model)
    edited.apply(patch_of(model_type, method_name))
    wanted = logits(edited.model)
    written = export_lora(edited, tmp_path / "lora")
    assert far(wanted, before) > 1e-3
    assert far(logits(with_adapter(model_type, tmp_path / "lora")), wanted) < 1e-5
    assert set(written.loss.values()) == {0.0}


@over_shapes
def test_a_lora_loads_on_top_of_a_model_and_can_be_edited_further(
    model_type: str, tmp_path: Path
) -> None:
    edited = edited_model(model_type)
    edited.apply(random_patch(edited, 1))
    export_lora(edited, tmp_path / "lora")
    base = saved_base(model_type, tmp_path / "base")
    loaded = load(str(base), adapter=tmp_path / "lora", adapter_kind="lora")
    assert far(logits(loaded.model), logits(edited.model)) < 1e-5
    assert loaded.base.weights != load(str(base)).base.weights
    before = logits(loaded.model)
    loaded.apply(random_patch(loaded, 2))
    assert far(logits(loaded.model), before) > 1e-3
    loaded.undo()
    assert torch.equal(logits(loaded.model), before)


@over_shapes
def test_peft_and_transformers_alone_load_what_was_exported(
    model_type: str, tmp_path: Path
) -> None:
    edited = load(str(saved_base(model_type, tmp_path / "base")))
    before = logits(edited.model)
    edited.apply(random_patch(edited, 1))
    wanted = logits(edited.model)
    export_lora(edited, tmp_path / "lora")
    export_merged(edited, tmp_path / "merged")
    lora = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")  # loads the base by itself
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert far(wanted, before) > 1e-3
    assert far(logits(lora.eval()), wanted) < 1e-5
    assert torch.equal(logits(merged.eval()), wanted)


@over_shapes
@pytest.mark.parametrize("pattern", [False, True], ids=["padded", "patterned"])
def test_a_stack_of_unlike_ranks_is_one_lora(
    model_type: str, pattern: bool, tmp_path: Path
) -> None:
    edited = edited_model(model_type)
    first, second, third = (random_patch(edited, rank, rank=rank) for rank in (2, 3, 4))
    low, high = sorted(second.updates)
    edited.apply(first)
    edited.apply(WeightPatch({low: second.updates[low]}, second.provenance))
    edited.apply(WeightPatch({high: third.updates[high]}, third.provenance))
    written = export_lora(edited, tmp_path / "lora", rank_pattern=pattern)
    assert written.ranks == {low: 5, high: 6}
    assert far(logits(with_adapter(model_type, tmp_path / "lora")), logits(edited.model)) < 1e-5
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    assert list(config["rank_pattern"].values()) == ([5] if pattern else [])
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["fan_in_fan_out"] is (model_type == "gpt2")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    name = f"base_model.model.{low.removesuffix('.weight')}.lora_A.weight"
    assert len(tensors[name]) == (5 if pattern else 6)


@over_shapes
def test_a_dense_update_is_factored_without_loss(model_type: str, tmp_path: Path) -> None:
    edited = edited_model(model_type)
    whole = dense(random_patch(edited, 1, rank=20))
    edited.apply(whole)
    written = export_lora(edited, tmp_path / "lora")
    assert written.rank == 24
    assert far(logits(with_adapter(model_type, tmp_path / "lora")), logits(edited.model)) < 1e-5


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_the_factors_of_a_dense_update_are_its_numbers_to_the_bit(shape: tuple[int, int]) -> None:
    delta = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    B, A = stacked([Update(None, delta, torch.zeros(shape[1], 1))])
    assert torch.equal(B @ A, delta)
    assert A.shape == (5, shape[1])


def test_a_stack_past_the_smaller_side_is_recompressed() -> None:
    source = torch.Generator().manual_seed(2)
    updates = [
        Update(
            torch.randn(6, 4, generator=source),
            torch.randn(4, 10, generator=source),
            torch.zeros(10, 1),
        )
        for _ in range(3)
    ]
    B, A = stacked(updates)
    assert len(A) == 6
    assert torch.allclose(B @ A, sum(update.delta() for update in updates), atol=1e-6)


@over_shapes
def test_a_lower_rank_says_what_it_lost(model_type: str, tmp_path: Path) -> None:
    edited = edited_model(model_type)
    patch = random_patch(edited, 1, rank=6)
    edited.apply(patch)
    written = export_lora(edited, tmp_path / "lora", rank=2)
    assert set(written.ranks.values()) == {2}
    assert any("the relative error of Δ" in note for note in written.notes)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for name, update in patch.updates.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        kept = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        delta = update.delta()
        lost = float((delta - kept).norm() / delta.norm())
        assert written.loss[name] == pytest.approx(lost, rel=1e-4)
        values = torch.linalg.svdvals(delta.double())
        best = float(values[2:].norm() / values.norm())
        assert lost == pytest.approx(best, rel=1e-4)


def test_a_rank_that_is_high_enough_changes_nothing(tmp_path: Path) -> None:
    edited = edited_model("llama")
    edited.apply(random_patch(edited, 1, rank=3))
    export_lora(edited, tmp_path / "whole")
    written = export_lora(edited, tmp_path / "cut", rank=8)
    assert (written.rank, set(written.loss.values())) == (3, {0.0})
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    edited = edited_model("gpt2")
    edited.apply(random_patch(edited, 1))
    before = logits(edited.model)
    export_lora(edited, tmp_path / "lora", rank=1)
    assert torch.equal(logits(edited.model), before)
    edited.undo()
    assert torch.equal(logits(edited.model), logits(tiny_model("gpt2")))


def test_servers_take_certain_ranks() -> None:
    assert [served_rank(rank) for rank in (1, 2, 8, 9, 321, 512)] == [1, 8, 8, 16, 512, 512]
    assert served_rank(513) is None


def test_a_rank_that_no_server_takes_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.patches.lora.SERVED_RANKS", (1, 2))
    edited = edited_model("llama")
    edited.apply(random_patch(edited, 1, rank=3))
    written = export_lora(edited, tmp_path / "lora")
    assert any("more than servers accept" in note for note in written.notes)
    assert not export_lora(edited, tmp_path / "other", rank=2).notes[1:]


def test_nothing_to_export_and_no_rank_left_are_errors(tmp_path: Path) -> None:
    edited = edited_model("llama")
    with pytest.raises(ErrataError, match="no patch to export"):
        export_lora(edited, tmp_path / "lora")
    edited.apply(random_patch(edited, 1))
    with pytest.raises(ErrataError, match="is not positive"):
        export_lora(edited, tmp_path / "lora", rank=0)
    assert not (tmp_path / "lora").exists()
