"""A merged checkpoint is the patched model to the bit; folders are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from errata.core.errors import ErrataError
from errata.models.identity import model_hash
from errata.patches.edited_model import EditedModel, load
from errata.patches.export import Export, export_lora, export_merged
from errata.patches.weight_patch import WeightPatch
from laws.bench import edited_model, over_methods, over_shapes, patch_of, random_patch, weights
from patches.folders import logits
from tiny import FACTS


@over_shapes
@over_methods
def test_a_merged_checkpoint_is_the_patched_model(
    model_type: str, method_name: str, tmp_path: Path
) -> None:
    edited = edited_model(model_type)
    edited.apply(patch_of(model_type, method_name))
    edited.apply(random_patch(edited, 5))
    written = export_merged(edited, tmp_path / "merged")
    loaded = load(str(tmp_path / "merged"))
    assert torch.equal(logits(loaded.model), logits(edited.model))
    assert loaded.base.weights == model_hash(edited.model) != edited.base.weights
    assert (
        loaded.tokenizer(FACTS[0].text)["input_ids"] == edited.tokenizer(FACTS[0].text)["input_ids"]
    )
    modes = {path.stat().st_mode for path in (tmp_path / "merged").iterdir() if path.is_file()}
    assert len(modes) == 1
    assert max(written.loss.values()) < 1e-6
    assert written.notes == ()


def test_a_dtype_that_swallows_the_change_is_said(tmp_path: Path) -> None:
    edited = edited_model("llama", dtype=torch.bfloat16)
    edited.apply(random_patch(edited, 1, size=1e-4))
    written = export_merged(edited, tmp_path / "merged")
    assert max(written.loss.values()) > 0.1
    assert "is lost in torch.bfloat16" in written.notes[0]
    loaded = load(str(tmp_path / "merged"))
    assert loaded.model.dtype == torch.bfloat16
    assert weights(loaded.model) == weights(edited.model)


def _recipe(card: str) -> dict[str, object]:
    block = card.split("```yaml\n")[1].split("```")[0]
    return dict(yaml.safe_load(block))


@pytest.mark.parametrize("write", [export_lora, export_merged])
def test_the_card_holds_the_recipe_and_the_patches_stand_beside_it(
    write: type[Export], tmp_path: Path
) -> None:
    edited = edited_model("gpt2")
    patches = [patch_of("gpt2", "memit"), random_patch(edited, 2)]
    for patch in patches:
        edited.apply(patch)
    write(edited, tmp_path / "out", command="errata export tiny-gpt2")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    recipe = _recipe(card)
    assert recipe["base"] == edited.base.model_dump()
    assert recipe["requests"] == 3
    assert recipe["export"]["command"] == "errata export tiny-gpt2"  # type: ignore[index]
    entries = recipe["patches"]
    assert isinstance(entries, list)
    for entry, patch in zip(entries, patches, strict=True):
        assert WeightPatch.load(tmp_path / "out" / entry["file"]) == patch
        assert entry["digest"] == patch.digest
        assert entry["method"] == patch.provenance.method
        assert entry["settings"] == patch.provenance.settings
        assert entry["versions"] == patch.provenance.versions
    assert entries[0]["first_requests"][0] == f"{FACTS[0].marked} → {FACTS[0].target}"
    assert card.startswith("---\n")
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["knowledge-editing"]


def test_the_card_shows_the_first_requests_of_many(tmp_path: Path) -> None:
    edited = edited_model("llama")
    patch = random_patch(edited, 1)
    many = [FACTS[0].with_values(subject=f"Tower {i}", target="`*<b>`") for i in range(50)]
    patch = WeightPatch(patch.updates, patch.provenance.with_values(requests=many))
    edited.apply(patch)
    export_lora(edited, tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text(encoding="utf-8")
    assert "Tower 19" in card
    assert "Tower 20" not in card
    assert "and 30 more" in card
    assert r"\`\*\<b\>\`" in card


def test_a_hub_name_becomes_the_base_model(tmp_path: Path) -> None:
    edited = edited_model("llama")
    named = EditedModel(edited.model, edited.tokenizer, "owner/name")
    named.apply(random_patch(named, 1))
    export_lora(named, tmp_path / "lora")
    front = (tmp_path / "lora" / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert yaml.safe_load(front)["base_model"] == "owner/name"


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    edited = edited_model("llama")
    edited.apply(random_patch(edited, 1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for write in (export_lora, export_merged):
        with pytest.raises(ErrataError, match="is not empty"):
            write(edited, tmp_path / "full")
        with pytest.raises(ErrataError, match="is a file"):
            write(edited, tmp_path / "file")
    export_lora(edited, tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_config.json").is_file()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("write", [export_lora, export_merged])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_writer_that_is_stopped_leaves_nothing(
    write: type[Export],
    stop: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edited = edited_model("llama")
    edited.apply(random_patch(edited, 1))

    def fail(*_: object) -> None:
        raise stop

    monkeypatch.setattr("errata.patches.export.write_record", fail)
    with pytest.raises((KeyboardInterrupt, ErrataError)):
        write(edited, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
