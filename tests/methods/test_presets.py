"""Presets of a calibration: which one a model is given, and what a broken file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from errata import ErrataError, edit, load
from errata.core.places import presets_folder
from errata.methods import METHODS
from errata.methods import presets as presets_module
from errata.methods.edit import prepare
from errata.methods.preset_files import ModelIdentity, PresetFile, read_preset
from errata.methods.presets import (
    architectures,
    presets,
    published,
    settings_for,
    shipped_settings,
)
from errata.patches.edited_model import EditedModel
from laws.bench import edited_model
from tiny import FACTS

SCORE = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 20}
EVIDENCE = {
    "dataset": "counterfact",
    "digest": "0" * 64,
    "facts": 20,
    "calibrated_on": 30,
    "plan": "all 20 facts in one batch",
    "scores": {"efficacy": SCORE},
    "date": "2026-01-01",
    "versions": {"errata": "0.1.0"},
}
STRANGER = "1" * 64


def preset(edited: EditedModel, **given: Any) -> PresetFile:
    """Return a preset for a model; `weight` is its λ."""
    model = ModelIdentity.of(edited).named("pico").model_dump()
    values = {
        "model": {**model, **given.pop("model", {})},
        "method": given.pop("method", "memit"),
        "settings": {"blocks": [1, 2], "moment_weight": given.pop("weight", 3.0)},
        "evidence": {**EVIDENCE, **given.pop("evidence", {})},
        "source": "calibrated",
        **given,
    }
    return PresetFile.of(values)


def store(found: PresetFile, name: str = "") -> Path:
    return found.save(presets_folder() / (name or found.file_name))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_PRESETS", str(tmp_path / "presets"))
    return tmp_path / "presets"


def weight_of(edited: EditedModel, **how: Any) -> tuple[float | None, tuple[str, ...]]:
    method, _, notes = settings_for(METHODS["memit"], edited, {}, **how)
    return method.model_dump()["moment_weight"], notes


def test_a_file_survives_being_written_and_read(tmp_path: Path) -> None:
    found = preset(edited_model("llama"), scale_free={"relative_weight": 0.5})
    assert read_preset(found.save(tmp_path / "p.json")) == found
    assert found.file_name.startswith("pico-memit-") and "/" not in found.file_name


def test_a_preset_is_found_by_the_hash_of_the_weights() -> None:
    edited = edited_model("llama")
    store(preset(edited))
    method, source, notes = settings_for(METHODS["memit"], edited, {})
    assert (method.edited_blocks, method.model_dump()["moment_weight"]) == ((1, 2), 3.0)
    assert source.startswith("calibrated (") and notes == ()
    assert settings_for(METHODS["rome"], edited, {})[1] == "defaults", "another method"


def test_a_preset_is_found_by_architecture_and_size_with_a_note() -> None:
    edited = edited_model("llama")
    store(preset(edited, model={"weights": STRANGER, "name": "other"}))
    weight, notes = weight_of(edited)
    assert weight == 3.0 and "another checkpoint" in notes[0] and "other (111111" in notes[0]
    deeper = ModelIdentity.of(edited).size.model_dump() | {"blocks": 9}
    store(preset(edited, model={"size": deeper}, weight=5.0))
    assert weight_of(edited)[0] == 3.0, "of another size"
    assert weight_of(edited_model("mistral"))[0] is None, "of another architecture"


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> EditedModel:
    """A pico Llama whose calibrated preset ships with errata."""
    edited = edited_model("llama")
    files = (preset(edited, model={"name": "smollm2"}, weight=7.0),)
    monkeypatch.setattr(presets_module, "shipped_files", lambda: files)
    return edited


def test_a_shipped_file_is_found_by_weights_and_not_by_its_name(shipped: EditedModel) -> None:
    assert weight_of(shipped) == (7.0, ())
    other = edited_model("llama")
    other.model.lm_head.weight.data.mul_(1.5)
    for name in ("smollm2", "checkpoints/SmolLM2", "tuned"):
        other.name = name
        weight, (note,) = weight_of(other)
        assert weight == 7.0 and "made for another checkpoint of this architecture" in note


@pytest.mark.parametrize("name", ["smollm2", "checkpoints/smollm2", "pico"])
def test_a_shipped_file_is_for_one_vocabulary_and_architecture(
    shipped: EditedModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (file,) = presets_module.shipped_files()
    size = file.model.size.model_copy(update={"vocabulary": file.model.size.vocabulary + 1})
    files = (file.model_copy(update={"model": file.model.model_copy(update={"size": size})}),)
    monkeypatch.setattr(presets_module, "shipped_files", lambda: files)
    shipped.name = name
    assert settings_for(METHODS["memit"], shipped, {})[1] == "defaults"
    mistral = edited_model("mistral")
    mistral.name = name
    assert settings_for(METHODS["memit"], mistral, {})[1] == "defaults"


def test_a_calibration_starts_from_a_shipped_file_and_not_from_the_users_own(
    shipped: EditedModel,
) -> None:
    store(preset(shipped, weight=5.0))
    method, _, notes = shipped_settings(METHODS["memit"], shipped, {})
    assert method.model_dump()["moment_weight"] == 7.0 and notes == ()
    assert weight_of(shipped)[0] == 5.0


@pytest.fixture
def xl(monkeypatch: pytest.MonkeyPatch) -> EditedModel:
    """A pico GPT-2 of the size that the presets of GPT-2 XL are declared to be for."""
    edited = edited_model("gpt2")
    edited.name = "somebody/gpt2-xl"
    small = ModelIdentity.of(edited).architecture
    monkeypatch.setattr(
        presets_module, "architectures", lambda: {**architectures(), "gpt2-xl": small}
    )
    return edited


SMALL = {"blocks": (1, 2)}


def weight_given(edited: EditedModel, **how: Any) -> float | None:
    method, _, _ = settings_for(METHODS["memit"], edited, SMALL, **how)
    found = method.model_dump()["moment_weight"]
    return None if found is None else float(found)


def test_the_same_weights_win_over_a_name_and_a_name_over_the_same_size(xl: EditedModel) -> None:
    published = presets()["gpt2-xl"]["memit"].settings["moment_weight"]
    assert weight_given(xl) == published
    store(preset(xl, model={"weights": STRANGER}, weight=5.0))
    assert weight_given(xl) == published
    store(preset(xl, weight=7.0))
    assert weight_given(xl) == 7.0
    given = preset(xl, weight=9.0).save(presets_folder().parent / "given.json")
    assert weight_of(xl, preset=given)[0] == 9.0
    method, _, _ = settings_for(METHODS["memit"], xl, {"moment_weight": 11.0}, given)
    assert method.model_dump()["moment_weight"] == 11.0


def test_a_folder_called_gpt2_xl_that_holds_a_llama_does_not_get_its_blocks() -> None:
    edited = edited_model("llama")
    edited.name = "checkpoints/gpt2-xl"
    method, source, notes = settings_for(METHODS["memit"], edited, {})
    assert source == "defaults" and set(method.edited_blocks) <= set(range(4))
    assert any("the presets called gpt2-xl are for another model" in note for note in notes)
    assert any("gpt2, 48 blocks" in note and "llama, 4 blocks" in note for note in notes)


def test_a_folder_of_any_name_gets_the_presets_of_what_it_holds(xl: EditedModel) -> None:
    xl.name = "checkpoints/mine"
    method, source, notes = settings_for(METHODS["memit"], xl, SMALL)
    assert method.model_dump()["moment_weight"] == 20000 and "memit" in source
    (note,) = notes
    assert "published for gpt2-xl, which has the same architecture and size" in note
    own = preset(xl, model={"weights": STRANGER}, weight=5.0)
    store(own)
    assert weight_given(xl) == 5.0, "one's own calibration comes first"


def test_the_name_decides_between_models_of_one_size() -> None:
    known = architectures()
    one, two = "Llama-3.1-8B-Instruct", "DeepSeek-R1-Distill-Llama-8B"
    assert known[one] == known[two]
    for name in (one, two, two.lower()):
        found = published(METHODS["memit"], f"hub/{name}", known[two])
        assert found is not None
        same = one if name == one else two
        assert found == presets()[same]["memit"]
    other = published(METHODS["memit"], "hub/Meta-Llama-3-8B", known[two])
    assert other is not None and f"published for {one}" in other.notes[-1]
    assert published(METHODS["memit"], one, known["gpt2-xl"]._replace(blocks=47)) is None


def test_every_published_preset_names_an_architecture_that_has_its_blocks() -> None:
    assert set(presets()) == set(architectures())
    for name, methods in presets().items():
        for found in methods.values():
            assert max(found.settings["blocks"]) < architectures()[name].blocks
            loss = (found.settings.get("search") or {}).get("loss_block")
            assert loss is None or loss < architectures()[name].blocks
    demo = load("demo")
    assert ModelIdentity.of(demo).architecture == architectures()["demo"]


def test_the_latest_of_two_presets_is_used() -> None:
    edited = edited_model("llama")
    store(preset(edited, weight=5.0, evidence={"date": "2026-03-01"}), "a.json")
    store(preset(edited, weight=6.0, evidence={"date": "2026-02-01"}), "b.json")
    assert weight_of(edited)[0] == 5.0


def test_weights_are_hashed_only_for_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    edited, hashed = edited_model("llama"), [0]
    found = preset(edited)
    del edited.base
    real = EditedModel.base.func

    def base(self: EditedModel) -> Any:
        hashed[0] += 1
        return real(self)

    monkeypatch.setattr(EditedModel, "base", property(base))
    settings_for(METHODS["memit"], edited, {})
    assert hashed == [0]
    store(found.with_values(model=found.model.model_dump() | {"model_type": "gpt2"}))
    settings_for(METHODS["memit"], edited, {})
    assert hashed == [0]
    store(found, "fits.json")
    settings_for(METHODS["memit"], edited, {})
    assert hashed == [1]


def test_a_changed_model_has_another_hash() -> None:
    edited = edited_model("llama")
    store(preset(edited))
    with torch.no_grad():
        edited.model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    del edited.base
    assert "another checkpoint" in weight_of(edited)[1][0]


def test_an_edit_uses_the_preset_and_a_file(tmp_path: Path) -> None:
    edited = edited_model("llama")
    path = preset(edited, weight=4.0).save(tmp_path / "mine.json")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(fact.text for fact in FACTS) * 40)
    ready = prepare(edited, METHODS["memit"], {}, preset=path, corpus=str(text))
    assert ready.method.model_dump()["moment_weight"] == 4.0 and str(path) in ready.facts[0]
    patch = edit(
        edited,
        FACTS[0],
        preset=path,
        corpus=str(text),
        search={"steps": 2, "max_steps": 2},
        contexts={"prefixes": ("Well. ",)},
    )
    assert patch.provenance.settings["moment_weight"] == 4.0


def test_a_file_for_another_method_or_model_says_so(tmp_path: Path) -> None:
    edited = edited_model("llama")
    rome = preset(edited, method="rome", settings={"blocks": [1]}).save(tmp_path / "r.json")
    with pytest.raises(ErrataError, match="a preset for rome, not for memit"):
        weight_of(edited, preset=rome)
    other = preset(edited, model={"model_type": "gpt2"}).save(tmp_path / "o.json")
    assert "another architecture or size" in weight_of(edited, preset=other)[1][0]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no evidence": ({"evidence": ...}, "is not a preset"),
    "a later format": ({"format": 2}, "format 2"),
    "a format that is no number": ({"format": [1]}, "format"),
    "an unknown key": ({"colour": 1}, "colour"),
    "an unknown method": ({"method": "telepathy"}, "no method 'telepathy'"),
    "an unknown setting": ({"settings": {"colour": 3}}, "colour"),
    "a setting of a wrong type": ({"settings": {"blocks": "all"}}, "blocks"),
    "settings that are a list": ({"settings": [1]}, "settings"),
    "a model without a size": ({"model": {"name": "x"}}, "size"),
    "no number": ({"evidence": {**EVIDENCE, "facts": "many"}}, "facts"),
    "an infinite score": ({"scale_free": {"relative_weight": float("inf")}}, "relative_weight"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_presets_are_errors_with_a_hint(what: str, tmp_path: Path) -> None:
    changes, words = BROKEN[what]
    raw = preset(edited_model("llama")).model_dump(mode="json") | changes
    raw = {key: value for key, value in raw.items() if value is not ...}
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ErrataError, match=words) as raised:
        read_preset(path)
    assert raised.value.hints and str(path) in raised.value.message


@pytest.mark.parametrize("text", ["", "[", "3", "null", "[" * 100_000, "\ud800"])
def test_files_that_are_no_presets_are_errors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ErrataError, match=r"preset"):
        read_preset(path)
    with pytest.raises(ErrataError, match="cannot read the preset"):
        read_preset(tmp_path)


def test_a_broken_file_in_the_folder_does_not_stop_an_edit(folder: Path) -> None:
    edited = edited_model("llama")
    folder.mkdir()
    (folder / "a.json").write_text("{")
    assert settings_for(METHODS["memit"], edited, {})[1] == "defaults"
    store(preset(edited))
    assert weight_of(edited)[0] == 3.0
