"""Mixtures of experts are tuned: attention, everything, or the experts that all tokens share."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.core.errors import ErrataError
from errata.tuning.train import tune
from laws.bench import by_default, edited_model
from tiny import EXPERTS
from tuning.pico import ROWS, moved, quick, weights

over_experts = pytest.mark.parametrize("model_type", by_default(("qwen2_moe",), list(EXPERTS)))


@over_experts
@pytest.mark.parametrize("method", ["lora", "full"])
def test_attention_is_tuned(model_type: str, method: str, tmp_path: Path) -> None:
    edited = edited_model(model_type)
    before = weights(edited)
    settings = quick(method=method, modules="q,v,o", blocks="1,2")
    tune(edited, ROWS, settings, tmp_path / "work")
    found = moved(before, edited)
    assert {name.split(".")[2] for name in found} == {"1", "2"}
    assert all(".self_attn." in name for name in found)
    assert len(found) == 6


@over_experts
def test_all_of_it_is_tuned(model_type: str, tmp_path: Path) -> None:
    edited = edited_model(model_type)
    before = weights(edited)
    tune(edited, ROWS, quick(method="full"), tmp_path / "work")
    assert any("experts." in name for name in moved(before, edited))


def test_shared_experts_are_tuned_by_default(tmp_path: Path) -> None:
    edited = edited_model("qwen2_moe")
    before = weights(edited)
    tune(edited, ROWS, quick(), tmp_path / "work")
    found = moved(before, edited)
    assert "model.layers.2.mlp.shared_expert.down_proj.weight" in found
    assert not any(".experts." in name for name in found)


def test_matrices_that_are_missing_are_named_with_those_that_are_there(tmp_path: Path) -> None:
    edited = edited_model("mixtral")
    with pytest.raises(ErrataError, match="no matrix of this model has the role down or up") as bad:
        tune(edited, ROWS, quick(), tmp_path / "work")
    assert bad.value.hints == ("choose other roles: --modules q,k,v,o",)
