"""Adapters on top of a model: LoRA and DoRA, blank paths, and what is wrong said in words."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.core.errors import ErrataError
from errata.models.families import family_of
from errata.patches.adapter import merge_adapter, read_adapter
from errata.patches.edited_model import load
from laws.bench import apply_edit, found, moments_of, over_families, quick, random_patch, weights
from patches.folders import far, logits, saved_adapter, saved_base, with_adapter
from tiny import FACTS, tiny_model


@over_families
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_is_merged_into_weights_at_their_usual_names(
    model_type: str, kind: str, tmp_path: Path
) -> None:
    folder = saved_adapter(model_type, tmp_path / "adapter", dora=kind == "dora")
    plain, wide = (
        tiny_model(model_type, torch.float64),
        with_adapter(model_type, folder, torch.float64),
    )
    merged = tiny_model(model_type, torch.float64)
    merged = merge_adapter(merged, str(folder), read_adapter(str(folder), kind))
    assert far(logits(merged), logits(plain)) > 1e-3
    assert far(logits(merged), logits(wide)) < 1e-6
    assert found(merged)["flags"] == found(plain)["flags"]
    assert found(merged)["modes"] == found(plain)["modes"]
    assert found(merged)["hooks"] == found(plain)["hooks"]
    assert weights(merged).keys() == weights(plain).keys()


def test_flags_of_parameters_are_kept(lora: Path) -> None:
    model = tiny_model("llama")
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    merged = merge_adapter(model, str(lora), read_adapter(str(lora)))
    assert [n for n, p in merged.named_parameters() if p.requires_grad] == ["lm_head.weight"]


@over_families
def test_a_model_with_an_adapter_can_be_edited_and_has_its_own_identity(
    model_type: str, tmp_path: Path
) -> None:
    base = str(saved_base(model_type, tmp_path / "base"))
    folder = saved_adapter(model_type, tmp_path / "adapter")
    loaded = load(base, adapter=folder, adapter_kind="lora")
    patch = apply_edit(loaded, FACTS[:1], quick("memit"), moments=moments_of(model_type))
    assert patch.provenance.base.weights == loaded.base.weights
    assert set(patch.updates) == {family_of(loaded.model).weight_name(b) for b in (1, 2)}
    with pytest.raises(ErrataError, match="this patch was made for"):
        load(base, patches=[patch])
    again = load(base, adapter=folder, patches=[patch])
    assert torch.equal(logits(again.model), logits(loaded.model))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved_base("llama", tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_adapter("llama", tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("blank", ["", " ", "\t\n", None])
def test_a_blank_path_is_the_name_and_a_blank_adapter_is_none(base: str, blank: str | None) -> None:
    loaded = load(base, path=blank, adapter=blank)
    assert loaded.name == base
    assert torch.equal(logits(loaded.model), logits(tiny_model("llama")))


def test_a_path_stands_for_the_name(base: str) -> None:
    assert load("meta-llama/nowhere", path=base).name == base
    assert load("", path=Path(base)).name == base


def test_a_blank_adapter_makes_its_kind_idle(base: str) -> None:
    loaded = load(base, adapter=" ", adapter_kind="lora")
    assert torch.equal(logits(loaded.model), logits(tiny_model("llama")))


Given = Mapping[str, Any]


def _wrong(base: str, lora: Path, tmp_path: Path) -> dict[str, tuple[Given, str, str]]:
    """What may be wrong: arguments, a part of the message, a part of the hints."""
    dora = saved_adapter("llama", tmp_path / "dora", dora=True)
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text('{"peft_type": "IA3", "task_type": "CAUSAL_LM"}')
    foreign = saved_adapter("gpt2", tmp_path / "foreign")
    part = _changed(lora, tmp_path / "part", drop=1)
    broken = _changed(lora, tmp_path / "broken", value=float("nan"))
    return {
        "no model": ({"name_or_path": " "}, "no model is given", "Hub name"),
        "adapter as model": ({"name_or_path": str(lora)}, "is an adapter", "adapter="),
        "unknown kind": ({"adapter": lora, "adapter_kind": "qlora"}, "'qlora'", "lora, dora"),
        "kind alone": ({"adapter_kind": "lora"}, "but no adapter", "adapter=DIR"),
        "not dora": ({"adapter": lora, "adapter_kind": "dora"}, "is LoRA, not DoRA", "kind='lora'"),
        "not lora": ({"adapter": dora, "adapter_kind": "lora"}, "is DoRA, not LoRA", "kind='dora'"),
        "missing": ({"adapter": tmp_path / "nowhere"}, "cannot load the adapter", "folder with"),
        "empty": ({"adapter": tmp_path / "empty"}, "cannot load the adapter", "folder with"),
        "another kind": ({"adapter": other}, "unsupported kind: IA3", "lora, dora"),
        "another model": ({"adapter": foreign}, "cannot merge the adapter", "another model?"),
        "a part": ({"adapter": part}, "tensors do not fit", "another model?"),
        "not finite": ({"adapter": broken}, "cannot merge the adapter", "another model?"),
    }


def _changed(adapter: Path, to: Path, *, drop: int = 0, value: float | None = None) -> Path:
    """Copy an adapter with tensors left out, or with a number set."""
    to.mkdir()
    (to / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    tensors = dict(list(load_file(adapter / "adapter_model.safetensors").items())[drop:])
    if value is not None:
        next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, to / "adapter_model.safetensors")
    return to


def test_what_is_wrong_is_said_with_a_hint(base: str, lora: Path, tmp_path: Path) -> None:
    for case, (given, message, hint) in _wrong(base, lora, tmp_path).items():
        with pytest.raises(ErrataError) as caught:
            load(**{"name_or_path": base, **given})
        assert message in caught.value.message, case
        assert hint in "\n".join(caught.value.hints), case


def test_without_peft_the_extra_is_named(
    base: str, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ErrataError) as caught:
        load(base, adapter=lora)
    assert caught.value.hints == ("pip install 'errata-lm[tune]'",)


def test_the_adapter_of_a_bfloat16_model_keeps_its_dtype(base: str, lora: Path) -> None:
    loaded = load(base, adapter=lora, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    loaded.apply(random_patch(loaded, 1))


def test_an_adapter_names_no_base_of_its_own(lora: Path) -> None:
    """An adapter is judged by whether it fits, not by the name its trainer gave the base."""
    config = json.loads((lora / "adapter_config.json").read_text())
    assert not config["base_model_name_or_path"]
