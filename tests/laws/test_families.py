"""A row of FAMILIES is right: the matrix is the MLP's output, and what is written there arrives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods import METHODS
from errata.methods.closed_form import residual
from errata.methods.closed_form.rewrite import Rewrite
from errata.models.families import FAMILIES, family_of, oriented, weight_of, width_of
from errata.patches.edited_model import EditedModel
from errata.patches.weight_patch import add
from laws.bench import closeness, edited_model, every_family, moments_of, over_methods, quick
from plain import put_out, read
from tiny import BLOCKS, CONFIGS, FACTS, VOCABULARY, WINDOW, inner_width, tiny_model, width

SLIDING = (
    *("mistral", "gemma2", "gemma3_text", "gemma3"),
    *("olmo3", "cohere2", "exaone4", "gpt_neo", "ministral", "starcoder2"),
)
TIED = (
    *("gpt2", "qwen2", "gemma2", "gemma3_text", "gemma3", "gemma", "smollm3", "granite", "cohere"),
    *("cohere2", "ernie4_5", "starcoder2", "gpt_bigcode", "gpt_bigcode, all heads", "gpt_neo"),
    *("falcon", "falcon, alibi", "falcon, new architecture", "bloom", "opt"),
)


def test_every_family_has_a_pico_model_of_its_own_type() -> None:
    types = {name: tiny_model(name).config.model_type for name in CONFIGS}
    assert types == {name: name.partition(",")[0] for name in CONFIGS}
    dense = {name for name, family in FAMILIES.items() if not family.experts}
    assert set(types.values()) == dense


@every_family
def test_a_row_names_what_is_there(model_type: str) -> None:
    model = tiny_model(model_type)
    family, config = family_of(model), model.config.get_text_config()
    assert family.block_count(model) == config.num_hidden_layers == BLOCKS
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    assert model.get_input_embeddings().weight.shape == (VOCABULARY, width(model))
    inner = inner_width(model_type)
    for index in range(BLOCKS):
        block, write = family.block(model, index), family.mlp_out(model, index)
        named = type(block.get_submodule(family.attention_path(model, index))).__name__.lower()
        assert "attention" in named or "deltanet" in named
        assert write in family.mlp(model, index).modules()
        module, weight = weight_of(model, family.weight_name(index))
        assert module is write
        assert oriented(module, weight).shape == (width(model), inner)
        assert width_of(module) == inner


def test_the_pico_models_have_what_makes_families_differ() -> None:
    for name in CONFIGS:
        model = tiny_model(name)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (
            name in TIED
        )
        ids = torch.arange(1, 22)[None].repeat(2, 1)  # no longer than the shortest row of FACTS
        ids[1, 0] = 300
        with torch.no_grad():  # row by row: rounding depends on the place in a batch
            one, other = (
                model(input_ids=row[None], output_hidden_states=True).hidden_states[1][0]
                for row in ids
            )
        assert torch.equal(one[-1], other[-1]) == (name in SLIDING), name
        assert not torch.equal(one[WINDOW - 1], other[WINDOW - 1])
    capped = tiny_model("gemma2")
    with torch.no_grad():
        assert 4 < capped(input_ids=ids).logits.abs().max() < 5


@every_family
@pytest.mark.parametrize("index", [0, 2])
def test_a_rank_one_change_arrives_at_the_output_of_its_block(model_type: str, index: int) -> None:
    """W + r kᵀ / (k · k) says r more where k is read; behind a norm, what the norm makes of it."""
    edited = edited_model(model_type)
    model, family = edited.model, family_of(edited.model)
    (rewrite,) = encoded(edited, "rome", 1)[0]
    row, block, write = rewrite.keys[0][0], family.block(model, index), family.mlp_out(model, index)
    key, said, before = (
        read(model, module, side, row)
        for module, side in ((write, "input"), (write, "output"), (block, "output"))
    )
    r = torch.randn(width(model), generator=torch.Generator().manual_seed(4))
    add(model, family.weight_name(index), torch.outer(r, key / (key @ key)))
    assert closeness(read(model, write, "output", row) - said, r) < 1e-5
    norm, wanted = family.after_mlp(model, index), r
    assert (norm is None) == family.adds_unchanged
    if norm is not None:
        with torch.no_grad():
            wanted = norm(said + r) - norm(said)
        assert closeness(wanted, r) > 0.3
    assert closeness(read(model, block, "output", row) - before, wanted) < 1e-5


def encoded(
    edited: EditedModel, method_name: str, count: int, **given: Any
) -> tuple[list[Rewrite], Any]:
    """Return the first facts in token ids, and the method with settings to write them in full."""
    whole = {"moment_weight": 1e-6, "ridge": 1e-6, "null_space_threshold": 2.0}
    known = METHODS[method_name].model_fields
    method = quick(
        method_name,
        **{name: value for name, value in whole.items() if name in known},
        contexts={"prefixes": ()},
        **given,
    )
    return method.rewrites(edited, FACTS[:count]), method


def states_at(model: PreTrainedModel, rewrites: list[Rewrite], index: int) -> Tensor:
    block = family_of(model).block(model, index)
    return torch.stack([read(model, block, "output", r.keys[0][0]) for r in rewrites])


def missed(model_type: str, method_name: str, count: int, blocks: tuple[int, ...]) -> float:
    """Search and write; return how far the last block's outputs stay from what was found.

    As a share of the way to go; what it puts out when the target value stands is tried out.
    """
    edited = edited_model(model_type)
    model, family = edited.model, family_of(edited.model)
    search = {"steps": 8, "learning_rate": 0.3, "clamp": 1.0, "stop_at": 0.0}
    rewrites, method = encoded(edited, method_name, count, blocks=blocks, search=search)
    targets = method.find_targets(model, rewrites)
    before, wanted = states_at(model, rewrites, blocks[-1]), targets.values
    if method.place == "mlp" or not family.adds_unchanged:
        pairs = zip(rewrites, wanted, strict=True)
        wanted = torch.stack([put_out(model, r, value, blocks[-1]) for r, value in pairs])
    for name, update in method.updates(model, rewrites, targets, moments_of(model_type)).items():
        add(model, name, update.delta())
    after = states_at(model, rewrites, blocks[-1])
    return float((wanted - after).norm() / (wanted - before).norm())


@every_family
@over_methods
def test_an_edit_of_one_block_arrives_at_its_output(model_type: str, method_name: str) -> None:
    count = 1 if method_name == "rome" else 3
    assert missed(model_type, method_name, count, (2,)) < 1e-3


@every_family
@pytest.mark.parametrize("method_name", [n for n, m in METHODS.items() if m.place == "block"])
def test_an_edit_spread_over_blocks_arrives_at_the_last(model_type: str, method_name: str) -> None:
    # Behind a norm the last block cannot make up for all that those below have missed.
    spread = missed(model_type, method_name, 3, (0, 1, 2))
    assert spread < (0.5 if FAMILIES[model_type.partition(",")[0]].block_post_norm else 1e-3)


def test_where_a_post_norm_matrix_says_nothing_nothing_is_asked_of_it() -> None:
    norm = torch.nn.RMSNorm(6)
    says, change = torch.randn(3, 6), torch.randn(3, 6, dtype=torch.float64)
    says[1] = 0
    asked = residual._before(norm, says, change)
    assert asked.isfinite().all()
    assert not asked[1].any()
    assert asked[0].any()
