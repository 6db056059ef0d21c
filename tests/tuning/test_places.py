"""What is named moves, nothing else does, and the model is left as plain as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.core.errors import ErrataError
from errata.models.families import FAMILIES, family_of
from errata.tuning.modules import moving
from errata.tuning.train import tune
from laws.bench import TYPICAL, by_default
from tiny import BLOCKS
from tuning.pico import EDITED, ROWS, moved, pico, pico_patch, quick, weights

DENSE = [name for name, family in FAMILIES.items() if not family.experts]

OTHERS = tuple(block for block in range(BLOCKS) if block not in EDITED)
WHERE = {
    "all": tuple(range(BLOCKS)),
    "edited": EDITED,
    "others": OTHERS,
    "0,3": (0, 3),
}
PARTS = {
    "gpt2": {"attn.c_attn", "mlp.c_fc", "mlp.c_proj"},
    "gptj": {"attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in", "mlp.fc_out"},
    "llama": {
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        *("mlp.up_proj", "mlp.down_proj"),
    },
}
"""q, k, v, up and down of a block, written out for three families."""


@pytest.mark.parametrize(
    ("model_type", "where"),
    [("llama", where) for where in WHERE]
    + [("gpt2", "edited"), ("gptj", "others")]
    + [pytest.param("gpt2", where, marks=pytest.mark.slow) for where in ("all", "others")]
    + [pytest.param("gptj", where, marks=pytest.mark.slow) for where in ("all", "edited")],
)
def test_the_matrices_named_and_no_others_move(model_type: str, where: str, tmp_path: Path) -> None:
    edited = pico(model_type)
    edited.apply(pico_patch(edited))
    before = weights(edited)
    tuned = tune(edited, ROWS, quick(blocks=where), tmp_path / "work")
    path = family_of(edited.model).blocks
    expected = {
        f"{path}.{block}.{part}.weight" for block in WHERE[where] for part in PARTS[model_type]
    }
    assert moved(before, edited) == expected == set(tuned.moved)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"method": "dora", "modules": "down"}, {"mlp.down_proj.weight"}),
        ({"method": "full", "modules": "down"}, {"mlp.down_proj.weight"}),
        ({"method": "lora", "modules": "o,gate"},
         {"self_attn.o_proj.weight", "mlp.gate_proj.weight"}),
        ({"method": "full"}, None),
    ],
)  # fmt: skip
def test_by_role_and_method(given: dict[str, Any], parts: set[str] | None, tmp_path: Path) -> None:
    edited = pico()
    patch = pico_patch(edited)
    edited.apply(patch)
    before = weights(edited)
    tune(edited, ROWS, quick(blocks="edited", **given), tmp_path / "work")
    starts = tuple(f"model.layers.{block}." for block in EDITED)
    found = moved(before, edited)
    assert found == (
        {name for name in before if name.startswith(starts)}
        if parts is None
        else {start + part for start in starts for part in parts}
    )
    if parts is None or "mlp.down_proj.weight" in parts:
        assert set(patch.updates) <= found, "the edited matrices themselves are tuned"


def test_full_tuning_of_all_blocks_moves_everything(tmp_path: Path) -> None:
    edited = pico("gpt2")
    before = weights(edited)
    tune(edited, ROWS, quick(method="full"), tmp_path / "work")
    assert moved(before, edited) == set(before)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", DENSE)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_family_is_tuned_where_it_was_edited(
    method: str, model_type: str, tmp_path: Path
) -> None:
    edited = pico(model_type)
    patch = pico_patch(edited)
    edited.apply(patch)
    before = weights(edited)
    tune(edited, ROWS, quick(method=method, modules="down", blocks="edited"), tmp_path / "work")
    assert moved(before, edited) == set(patch.updates)


@pytest.mark.parametrize("model_type", by_default(TYPICAL, DENSE))
def test_every_family_tells_its_matrices(model_type: str) -> None:
    edited = pico(model_type)
    found = moving(edited.model, quick(modules="q,k,v,o,up,down"), ())
    down = {family_of(edited.model).weight_name(block) for block in range(BLOCKS)}
    assert down < set(found)
    assert len(found) >= 4 * BLOCKS


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow), "full"])
def test_tuning_leaves_no_frozen_parameter_and_no_wrapper(method: str, tmp_path: Path) -> None:
    edited = pico()
    edited.apply(pico_patch(edited))
    edited.model.lm_head.weight.requires_grad_(False)
    kinds = [type(module) for module in edited.model.modules()]
    rng = torch.random.get_rng_state()
    tune(edited, ROWS, quick(method=method, gradient_checkpointing=True), tmp_path / "work")
    assert [type(module) for module in edited.model.modules()] == kinds
    flags = {name: p.requires_grad for name, p in edited.model.named_parameters()}
    assert flags.pop("lm_head.weight") is False
    assert all(flags.values())
    assert not any(module.training for module in edited.model.modules())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert edited.model.config.use_cache
    before = weights(edited)
    tune(edited, ROWS, quick(method="full"), tmp_path / "again")
    assert moved(before, edited) == set(before), "also what was frozen before moves when asked to"


def test_where_there_is_nothing_to_tune() -> None:
    edited = pico()
    with pytest.raises(ErrataError, match="no patch that determines"):
        moving(edited.model, quick(blocks="edited"), ())
    with pytest.raises(ErrataError, match="there is no block 9"):
        moving(edited.model, quick(blocks="1,9"), ())
    with pytest.raises(ErrataError, match="no matrix of this model has the role gate"):
        moving(pico("gpt2").model, quick(modules="gate"), ())
    with pytest.raises(ErrataError, match="unknown: sideways"):
        quick(modules="q,sideways")
    with pytest.raises(ErrataError, match="or a list like"):
        quick(blocks="some")
