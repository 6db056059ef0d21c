"""Mixtures of experts are loaded, evaluated and asked; editing them is refused at once.

What a trace and a lens say of them stands with the dense families, in test_trace and test_lens.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.core.errors import ErrataError
from errata.methods import METHODS
from errata.methods.edit import compute_edit, prepare
from errata.metrics.likelihood import answer_row, score_token_rows
from errata.models.families import FAMILIES, family_of
from errata.models.generation import continuations
from errata.models.shape import ModelShape
from errata.patches.edited_model import load
from laws.bench import by_default, edited_model, quick
from patches.folders import IDS, saved_base
from tiny import BLOCKS, EXPERTS, FACTS, tiny_model

over_experts = pytest.mark.parametrize("model_type", by_default(("qwen2_moe",), list(EXPERTS)))
REFUSED = "cannot be edited: their MLPs are mixtures of experts"
PROMPTS = ["The harbour of", "The Lantern Bridge is in the city of Ostrava", "They"]


def test_every_mixture_of_experts_has_a_pico_model() -> None:
    types = {name: tiny_model(name).config.model_type for name in EXPERTS}
    assert types == {name: name for name in EXPERTS}
    assert set(EXPERTS) == {name for name, family in FAMILIES.items() if family.experts}


@pytest.mark.parametrize("model_type", list(EXPERTS))
def test_a_row_names_what_is_there(model_type: str) -> None:
    model = tiny_model(model_type)
    family = family_of(model)
    assert family.block_count(model) == BLOCKS
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    mlps = [family.mlp(model, block) for block in range(BLOCKS)]
    assert any(weight.ndim == 3 for mlp in mlps for weight in mlp.parameters())
    assert "attention" in type(family.attention(model, 0)).__name__.lower()


def test_the_work_of_a_token_is_that_of_its_experts() -> None:
    shape = ModelShape.of(tiny_model("qwen2_moe"))
    assert shape.mlp == 2 * 20 + 28  # two routed experts and the shared one
    assert shape.last_mlp_weights == 3 * 24 * shape.mlp + 4 * 24 + 24  # the router, and a gate


@over_experts
def test_a_folder_is_loaded(model_type: str, tmp_path: Path) -> None:
    loaded = load(str(saved_base(model_type, tmp_path / "base"))).model
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, tiny_model(model_type)(IDS).logits)


@over_experts
def test_it_is_evaluated_and_asked_like_any_model(model_type: str) -> None:
    edited = edited_model(model_type)
    model, tokenizer = edited.model, edited.tokenizer
    rows = [answer_row(tokenizer, fact.text, fact.answer) for fact in FACTS]
    for row, found in zip(rows, score_token_rows(model, rows), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.ids])).logits[0]
        said = logits[-len(row.targets) :].log_softmax(-1)
        wanted = -said.gather(1, torch.tensor(row.targets)[:, None]).mean()
        assert found.nll == pytest.approx(float(wanted), rel=1e-5)
    alone = [continuations(model, tokenizer, [prompt], 8)[0] for prompt in PROMPTS]
    assert continuations(model, tokenizer, PROMPTS, 8) == alone


@over_experts
@pytest.mark.parametrize("method_name", list(METHODS))
def test_editing_is_refused(model_type: str, method_name: str) -> None:
    edited = edited_model(model_type)
    with pytest.raises(ErrataError, match=f"{model_type} models {REFUSED}"):
        prepare(edited, METHODS[method_name], {})
    with pytest.raises(ErrataError, match=REFUSED):
        compute_edit(edited, FACTS[:1], quick(method_name), moments={})


@over_experts
def test_editing_is_refused_before_weights_are_read(model_type: str, tmp_path: Path) -> None:
    folder = saved_base(model_type, tmp_path / "base")
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ErrataError, match=REFUSED):
        load(str(folder), to_edit=True)
