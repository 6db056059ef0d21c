"""Numbers that are none, and matrices of any size: refused, and nothing is left changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata import ErrataError, load
from errata.methods.closed_form.prefixes import sample_prefixes
from errata.metrics.likelihood import likelihoods
from errata.patches.edited_model import EditedModel
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.statistics.measure import measure

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def pico(folder: Path) -> EditedModel:
    return load(folder / "pico")


def patched(folder: Path, update: Update) -> WeightPatch:
    sound = WeightPatch.load(folder / "patch.safetensors")
    return WeightPatch({NAME: update}, sound.provenance)


def test_a_patch_of_any_size_is_refused_before_its_product_is_made(
    pico: EditedModel, folder: Path
) -> None:
    wide = 2_000_000  # R A would take 32 TB
    update = Update(torch.ones(wide, 1), torch.ones(1, wide), torch.ones(wide, 1))
    with pytest.raises(ErrataError, match=r"of shape \(2000000, 2000000\) for"):
        pico.apply(patched(folder, update), allow_base=True)
    assert not pico.patches


def test_a_patch_that_makes_weights_infinite_is_taken_back(pico: EditedModel, folder: Path) -> None:
    weight = pico.model.get_parameter(NAME)
    before = weight.detach().clone()
    d_out, d_in = weight.shape
    update = Update(torch.full((d_out, 1), 1e30), torch.full((1, d_in), 1e30), torch.ones(d_in, 1))
    with pytest.raises(ErrataError, match=f"makes {NAME} overflow in torch.float32"):
        pico.apply(patched(folder, update), allow_base=True)
    assert torch.equal(weight, before)
    assert not pico.patches


def test_answers_that_are_no_numbers_are_no_scores(pico: EditedModel) -> None:
    """Weights may be finite and activations not, as in float16: 0 % would be a wrong figure."""
    with torch.no_grad():
        pico.model.lm_head.weight.mul_(float("nan"))
    with pytest.raises(ErrataError, match=r"not finite in torch\.float32"):
        likelihoods(pico, [("The sea", " rose")])
    with pytest.raises(ErrataError, match=r"not finite in torch\.float32"):
        sample_prefixes(pico.model, pico.tokenizer, [2], 0)


def test_keys_that_are_no_numbers_are_no_second_moment(pico: EditedModel) -> None:
    with torch.no_grad():
        pico.model.model.embed_tokens.weight.mul_(float("inf"))
    with pytest.raises(ErrataError, match="keys of block 1 are not finite"):
        measure(pico.model, [(1, 2, 3)], [1])
