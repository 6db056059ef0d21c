"""Promise 10: what a narrow dtype swallows is measured, and a base outlives its dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.core.errors import ErrataError
from errata.methods.edit import compute_edit
from errata.models.families import family_of, weight_of
from errata.patches.edited_model import load
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from laws.bench import (
    apply_edit,
    closeness,
    edited_model,
    moments_of,
    over_methods,
    over_shapes,
    patch_of,
    quick,
    random_patch,
)
from tiny import FACTS, tiny_model, tiny_tokenizer

NARROW = (torch.bfloat16, torch.float16)


def scaled_patch(model_type: str, share: float) -> WeightPatch:
    """Return a patch with |Δ| about `share` of |W|, the same for every dtype."""
    edited = edited_model(model_type)
    patch = random_patch(edited, 3, size=1.0)
    updates = {}
    for name, update in patch.updates.items():
        assert update.R is not None
        size = float(weight_of(edited.model, name)[1].detach().norm() / update.delta().norm())
        updates[name] = Update(share * size * update.R, update.A, update.K)
    return WeightPatch(updates, patch.provenance)


@over_shapes
def test_float32_loses_nothing_worth_telling(model_type: str) -> None:
    lost = edited_model(model_type).apply(scaled_patch(model_type, 1e-3))
    assert len(lost) == 2
    assert all(share < 1e-3 for share in lost.values())


@over_shapes
def test_bfloat16_loses_most_of_a_small_change_and_says_so(model_type: str) -> None:
    edited = edited_model(model_type, dtype=torch.bfloat16)
    small, large = scaled_patch(model_type, 1e-3), scaled_patch(model_type, 1.0)
    assert all(share > 0.5 for share in edited.apply(small, allow_base=True).values())
    edited.undo()
    assert all(share < 0.02 for share in edited.apply(large, allow_base=True).values())


@over_shapes
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_loss_told_is_the_loss_there_is(model_type: str, dtype: torch.dtype) -> None:
    edited, patch = edited_model(model_type, dtype=dtype), scaled_patch(model_type, 1e-2)
    family = family_of(edited.model)
    for block in (1, 2):
        module = family.mlp_out(edited.model, block)
        assert module.weight.dtype == dtype
    before = {name: weight_of(edited.model, name)[1].detach().clone() for name in patch.updates}
    told = edited.apply(patch, allow_base=True)
    for name, update in patch.updates.items():
        change = weight_of(edited.model, name)[1].detach().double() - before[name].double()
        delta = update.delta().double()
        delta = delta if delta.shape == change.shape else delta.T
        there = float((change - delta).norm() / delta.norm())
        assert told[name] == pytest.approx(there, rel=1e-3)


@over_shapes
@over_methods
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrow_models_can_be_edited(model_type: str, method_name: str, dtype: torch.dtype) -> None:
    edited = edited_model(model_type, dtype=dtype)
    method = quick(method_name, search={"steps": 2, "learning_rate": 0.3})
    patch = apply_edit(edited, FACTS[:1], method, moments=moments_of(model_type))
    for update in patch.updates.values():
        assert update.delta().dtype == torch.float32
        assert update.delta().isfinite().all()
        assert update.delta().any()
    assert {p.dtype for p in edited.model.parameters()} == {dtype}


@over_shapes
@over_methods
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_an_edit_of_narrow_weights_is_that_of_the_same_values_in_float32(
    model_type: str, method_name: str, dtype: torch.dtype
) -> None:
    narrow, wide = edited_model(model_type, dtype=dtype), edited_model(model_type, dtype=dtype)
    wide.model.float()
    held = {name: (p, p.data_ptr()) for name, p in narrow.model.named_parameters()}
    method, moments = quick(method_name), moments_of(model_type)
    found, expected = (
        compute_edit(each, FACTS, method, moments=moments) for each in (narrow, wide)
    )
    for name, update in expected.updates.items():
        assert closeness(found.updates[name].delta(), update.delta()) < 1e-6
    for name, parameter in narrow.model.named_parameters():
        assert parameter is held[name][0] and parameter.data_ptr() == held[name][1]
        assert parameter.dtype == dtype


def test_weights_are_narrow_again_when_there_is_no_memory_to_widen_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edited, made, real = edited_model("llama", dtype=torch.bfloat16), [], torch.Tensor.float

    def scarce(tensor: torch.Tensor) -> torch.Tensor:
        if len(made) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        made.append(tensor)
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "float", scarce)
    with pytest.raises(ErrataError, match="not enough memory for the weights in float32"):
        compute_edit(edited, FACTS, quick("memit"), moments=moments_of("llama"))
    assert len(made) > 5
    assert {p.dtype for p in edited.model.parameters()} == {torch.bfloat16}


def saved(model_type: str, dtype: torch.dtype, folder: Path) -> str:
    tiny_model(model_type, dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@over_shapes
@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
def test_a_model_is_the_same_base_in_every_dtype(
    model_type: str, stored: torch.dtype, loaded: torch.dtype, tmp_path: Path
) -> None:
    folder = saved(model_type, stored, tmp_path / "model")
    as_stored, otherwise = load(folder), load(folder, dtype=loaded)
    assert as_stored.model.dtype == stored
    assert otherwise.model.dtype == loaded
    assert otherwise.base.weights == as_stored.base.weights
    patch = random_patch(as_stored, 0)
    otherwise.apply(patch)
    assert otherwise.patches == [patch]


@over_shapes
def test_a_model_loaded_from_its_folder_is_the_model(model_type: str, tmp_path: Path) -> None:
    folder = saved(model_type, torch.float32, tmp_path / "model")
    assert load(folder).base.weights == edited_model(model_type).base.weights


@over_shapes
def test_a_patch_given_to_load_is_applied(model_type: str, tmp_path: Path) -> None:
    folder = saved(model_type, torch.float32, tmp_path / "model")
    patch = random_patch(edited_model(model_type), 0)
    path = patch.save(tmp_path / "patch.safetensors")
    assert (
        load(folder, patches=[path, random_patch(edited_model(model_type), 1)]).patches[0] == patch
    )


@over_methods
def test_a_faster_search_is_labelled_near_and_never_the_default(method_name: str) -> None:
    patches = {}
    for precision in ("full", "tf32", "autocast"):
        edited = edited_model("llama")
        method = quick(method_name)
        search = {**method.search.model_dump(), "precision": precision}
        method = method.with_values(search=search)
        patches[precision] = compute_edit(edited, FACTS[:2], method, moments=moments_of("llama"))
    assert quick(method_name).search.precision == "full"
    assert patches["full"].provenance.notes == patch_of("llama", method_name).provenance.notes
    for precision in ("tf32", "autocast"):
        made = patches[precision].provenance
        assert made.settings["search"]["precision"] == precision
        assert f"target values were searched with {precision} products" in made.notes
    for name, update in patches["full"].updates.items():
        away = closeness(patches["autocast"].updates[name].delta(), update.delta())
        assert 1e-5 < away < 0.2, away
        assert closeness(patches["tf32"].updates[name].delta(), update.delta()) < 1e-5
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.is_autocast_enabled("cpu")
