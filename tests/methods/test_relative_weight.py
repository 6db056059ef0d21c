"""MEMIT's λ relative to the keys: its formula, its freedom from scale, and its alternatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.core.errors import ErrataError
from errata.methods.memit import RELATIVE_WEIGHT, Memit
from errata.methods.presets import presets, resolve_settings
from errata.statistics.second_moment import SecondMoment


def drawn(scale: float = 1.0, count: int = 6) -> tuple[Tensor, SecondMoment]:
    source = torch.Generator().manual_seed(3)
    sample = scale * torch.randn(400, 24, generator=source)
    keys = scale * (torch.randn(24, count, generator=source) + 1.0)
    return keys, SecondMoment(sample.T @ sample / 400, 400)


def test_lambda_has_the_ratio_of_mean_eigenvalues() -> None:
    keys, moment = drawn()
    method = Memit(relative_weight=0.25)
    weight = method.weight(keys, moment)
    old = torch.linalg.eigvalsh(weight * moment.matrix.double()).mean()
    new = torch.linalg.eigvalsh(keys.double() @ keys.double().T).mean()
    assert float(old / new) == pytest.approx(0.25, rel=1e-5)
    K, C = keys.double(), moment.matrix.double()
    dense = K.T @ torch.linalg.inv(weight * C + K @ K.T)
    torch.testing.assert_close(method.read(keys, keys, moment, None), dense, rtol=1e-6, atol=1e-9)


def test_a_relative_weight_does_not_depend_on_the_scale_of_activations() -> None:
    keys, moment = drawn()
    large, scaled = drawn(40.0)
    method = Memit(relative_weight=0.5)
    plain = method.read(keys, keys, moment, None) @ keys.double()
    assert torch.allclose(method.read(large, large, scaled, None) @ large.double(), plain)


def test_the_share_written_is_reported_for_both_forms() -> None:
    keys, moment = drawn()
    weight = Memit(relative_weight=0.25).weight(keys, moment)
    (relative,) = Memit(relative_weight=0.25).notes(moment, keys)
    (absolute,) = Memit(moment_weight=weight).notes(moment, keys)
    assert relative == absolute == f"λ {weight:.4g}, 0.25 relative to the keys"


def test_the_history_of_a_relative_weight_is_that_of_the_same_number() -> None:
    keys, moment = drawn()
    earlier = [torch.randn(24, 5, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    relative = Memit(relative_weight=0.5, history=True)
    absolute = Memit(moment_weight=relative.weight(keys, moment), history=True)
    torch.testing.assert_close(
        relative.read(keys, keys, moment, earlier), absolute.read(keys, keys, moment, earlier)
    )


def test_setting_one_form_of_lambda_unsets_the_other() -> None:
    preset = presets()["gpt2-xl"]["memit"]
    published, *_ = resolve_settings(Memit, "gpt2-xl", 48, {"relative_weight": 2.0}, preset)
    assert (published.moment_weight, published.relative_weight) == (None, 2.0)
    guessed, *_ = resolve_settings(Memit, "unheard-of", 48, {"moment_weight": 150.0})
    assert (guessed.moment_weight, guessed.relative_weight) == (150.0, None)
    unset, *_ = resolve_settings(Memit, "unheard-of", 48, {})
    assert (unset.moment_weight, unset.relative_weight) == (None, RELATIVE_WEIGHT)
    assert Memit(relative_weight=1.0).moment_weight is None
    assert Memit.of(guessed.model_dump()) == guessed
    assert Memit.of(unset.model_dump()) == unset


def test_both_forms_at_once_are_refused() -> None:
    with pytest.raises(ErrataError, match="one of moment_weight and relative_weight"):
        Memit.of({"moment_weight": 1.0, "relative_weight": 1.0})
    with pytest.raises(ErrataError, match="one of moment_weight and relative_weight"):
        Memit.of({"moment_weight": None})


def test_settings_with_a_number_are_recorded_as_before() -> None:
    assert "relative_weight" not in Memit().model_dump()
