"""Models that are spread over devices or partly on disk, and `--device auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import errata
from errata.core.errors import ErrataError
from errata.models.loading import first_device
from errata.patches.edited_model import EditedModel
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

pytest.importorskip("accelerate")
PLACES = ("embed_tokens", "rotary_emb", "norm", *(f"layers.{i}" for i in range(4)))
QUICK: dict[str, Any] = {
    "search": {"steps": 3, "max_steps": 3},
    "contexts": {"prefixes": ("Well. ",)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "text.txt").write_text("\n".join(SENTENCES * 4))
    return folder


def dispatched(folder: Path, tmp_path: Path, *on_disk: str, **how: Any) -> EditedModel:
    """Return the model with these blocks on disk and the rest in memory."""
    places = {f"model.{each}": "cpu" for each in PLACES} | {"lm_head": "cpu"}
    places |= {each if each == "lm_head" else f"model.{each}": "disk" for each in on_disk}
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "off", **how
    )
    assert any(weight.is_meta for weight in model.parameters()) == bool(on_disk)
    return EditedModel(model.eval(), tiny_tokenizer(), "pico")


def rome(edited: EditedModel, folder: Path, block: int = 2, **how: Any) -> Any:
    return errata.edit(
        edited,
        FACTS[0],
        "rome",
        corpus=str(folder / "text.txt"),
        blocks=(block,),
        **QUICK,
        **how,
    )


def test_the_device_auto_is_the_first_one(folder: Path) -> None:
    assert errata.load(folder, device="auto").model.device.type == first_device()


def test_a_model_partly_on_disk_is_edited_like_one_in_memory(folder: Path, tmp_path: Path) -> None:
    whole, spread = errata.load(folder), dispatched(folder, tmp_path, "layers.0", "layers.3")
    whole.name = "pico"
    assert spread.base == whole.base
    before = spread.generate(FACTS[0].text, 4)
    assert before == whole.generate(FACTS[0].text, 4)
    one, other = rome(whole, folder), rome(spread, folder)
    for name, update in one.updates.items():
        torch.testing.assert_close(other.updates[name].delta(), update.delta())
    assert spread.generate(FACTS[0].text, 4) == whole.generate(FACTS[0].text, 4)
    assert all(weight.is_meta for weight in spread.model.model.layers[3].parameters())
    spread.undo()
    assert spread.generate(FACTS[0].text, 4) == before


def test_a_block_on_disk_is_not_edited(folder: Path, tmp_path: Path) -> None:
    edited = dispatched(folder, tmp_path, "layers.2")
    with pytest.raises(ErrataError, match=r"layers\.2\.mlp\.down_proj\.weight is offloaded"):
        rome(edited, folder)
    assert edited.patches == []


def test_16_bit_weights_on_disk_are_not_widened(folder: Path, tmp_path: Path) -> None:
    edited = dispatched(folder, tmp_path, "layers.3", dtype=torch.bfloat16)
    with pytest.raises(ErrataError, match="partly offloaded") as caught:
        rome(edited, folder)
    assert "float32" in caught.value.hints[0]
    assert edited.generate("The sea", 2) == edited.generate("The sea", 2)


def test_a_patch_for_a_weight_on_disk_is_refused(folder: Path, tmp_path: Path) -> None:
    patch = rome(errata.load(folder), folder)
    edited = dispatched(folder, tmp_path, "layers.2")
    with pytest.raises(ErrataError, match="is offloaded"):
        edited.apply(patch)
    assert edited.patches == []


@pytest.mark.parametrize("places", [("embed_tokens",), (*PLACES, "lm_head")])
def test_a_model_without_its_embedding_in_memory_is_refused(
    places: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    try:
        with pytest.raises(ErrataError, match="input embedding is offloaded") as caught:
            dispatched(folder, tmp_path, *places)
    except ValueError as error:  # older versions of accelerate do not do it
        assert "offload the whole model" in str(error)
        pytest.skip("this version of accelerate does not put a whole model on disk")
    assert "onto one device" in caught.value.hints[0]
