"""AlphaEdit's null space as a share of directions, and its ridge relative to the keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.core.errors import ErrataError
from errata.methods.alphaedit import NULL_SPACE_SHARE, RELATIVE_RIDGE, AlphaEdit
from errata.methods.presets import presets, resolve_settings
from errata.statistics.second_moment import SecondMoment

WIDTH = 24
FREE = {"relative_ridge": 0.2, "null_space_share": 0.5}


def drawn(scale: float = 1.0) -> tuple[Tensor, SecondMoment]:
    source = torch.Generator().manual_seed(3)
    spread = torch.linspace(0.1, 2.0, WIDTH)
    sample = scale * torch.randn(400, WIDTH, generator=source) * spread
    keys = scale * (torch.randn(WIDTH, 6, generator=source) + 1.0)
    return keys, SecondMoment(sample.T @ sample / 400, 400)


def dense(keys: Tensor, moment: SecondMoment) -> Tensor:
    """Return A by the formula, with the lower half of the eigenvectors and 0.2 mean ‖P k‖²."""
    _, vectors = torch.linalg.eigh(moment.matrix.double())
    P = vectors[:, : WIDTH // 2] @ vectors[:, : WIDTH // 2].T
    K = keys.double()
    ridge = 0.2 * (P @ K).square().sum(0).mean()
    return K.T @ P @ torch.linalg.inv(P @ K @ K.T @ P + ridge * torch.eye(WIDTH).double())


def test_the_relative_form_is_that_of_its_formula() -> None:
    keys, moment = drawn()
    method = AlphaEdit.of(FREE)
    assert method.null_space(moment).dimension == WIDTH // 2
    found = method.read(keys, keys, moment, None)
    torch.testing.assert_close(found, dense(keys, moment), rtol=1e-6, atol=1e-9)
    free = AlphaEdit(ridge=method.weight(keys, method.null_space(moment)), null_space_share=0.5)
    torch.testing.assert_close(free.read(keys, keys, moment, None), found)


def test_the_relative_form_does_not_depend_on_the_scale_of_activations() -> None:
    keys, moment = drawn()
    large, scaled = drawn(40.0)
    method = AlphaEdit.of(FREE)
    plain = method.read(keys, keys, moment, None) @ keys.double()
    grown = method.read(large, large, scaled, None) @ large.double()
    torch.testing.assert_close(grown, plain, rtol=1e-5, atol=1e-7)


def test_setting_one_form_unsets_the_other() -> None:
    preset = presets()["gpt2-xl"]["alphaedit"]
    published, *_ = resolve_settings(AlphaEdit, "gpt2-xl", 48, {"relative_ridge": 0.5}, preset)
    assert (published.ridge, published.relative_ridge) == (None, 0.5)
    assert published.null_space_threshold is not None
    guessed, *_ = resolve_settings(AlphaEdit, "unheard-of", 48, {"null_space_threshold": 0.5})
    assert (guessed.null_space_threshold, guessed.null_space_share) == (0.5, None)
    assert guessed.relative_ridge == RELATIVE_RIDGE
    unset, *_ = resolve_settings(AlphaEdit, "unheard-of", 48, {})
    assert (unset.null_space_share, unset.null_space_threshold) == (NULL_SPACE_SHARE, None)
    assert AlphaEdit.of(unset.model_dump()) == unset


def test_both_forms_at_once_are_refused() -> None:
    with pytest.raises(ErrataError, match="one of ridge and relative_ridge"):
        AlphaEdit.of({"ridge": 1.0, "relative_ridge": 1.0})


def test_settings_with_numbers_are_recorded_as_before() -> None:
    assert not {"relative_ridge", "null_space_share"} & AlphaEdit().model_dump().keys()
