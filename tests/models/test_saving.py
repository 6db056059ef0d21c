"""A saved checkpoint is its source with other weights: every other file is the same to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from errata.assets import MODEL_DIR
from errata.models.older_form import write_older_form
from errata.patches.edited_model import EditedModel, load
from errata.patches.export import export_merged
from laws.bench import over_shapes, random_patch
from patches.folders import logits, saved_base
from tiny import CONFIGS, EXPERTS, tiny_model

OTHERS = {
    "preprocessor_config.json": b'{"size":224}',
    "special_tokens_map.json": b'{ "eos_token" : "<s>"}\n',
    "chat_template.jinja": b"{{ messages }}\r\n",
    "tokenizer.model": b"\x0a\x0d\x00\xff",
    "LICENSE": "Überlassung\n".encode(),
    "original/params.json": b"{}",
    "original/README.md": b"another card",
    "original/patches/list.txt": b"",
}
NOT_COPIED = {
    "flax_model.msgpack": b"x",
    "rust_model.ot": b"x",
    "64-8bits.tflite": b"x",
    "onnx/model.onnx": b"x",
    "onnx/model.onnx_data_1": b"x",
    "checkpoint-5/config.json": b"{}",
    ".cache/file": b"x",
    "errata.json": b"{}",
}
SOURCES = {"one file": "50GB", "shards": "40KB"}


def source(model_type: str, folder: Path, size: str = "50GB", *, bins: bool = False) -> Path:
    """Save a pico model in shards of a size, with the other files that checkpoints have."""
    saved_base(model_type, folder)
    (folder / "model.safetensors").unlink()
    tiny_model(model_type).save_pretrained(folder, max_shard_size=size)
    write_older_form(folder)
    for name, content in (OTHERS | NOT_COPIED).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("the card of the base")
    if bins:
        _as_bins(folder)
    return folder


def _as_bins(folder: Path) -> None:
    for path in folder.glob("model*.safetensors"):
        torch.save(_tensors(path), path.with_name(_bin(path.name)))
        path.unlink()
    for path in folder.glob("*.index.json"):
        index = json.loads(path.read_text())
        index["weight_map"] = {name: _bin(file) for name, file in index["weight_map"].items()}
        path.with_name("pytorch_model.bin.index.json").write_text(json.dumps(index))
        path.unlink()


def _bin(name: str) -> str:
    return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def stored(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file of weights."""
    return {path.name: _tensors(path) for path in sorted(folder.glob("model*.safetensors"))}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def exported(base: Path, out: Path, *, times: int = 1, **given: Any) -> EditedModel:
    """Edit a model, export it, check that it loads as it was; return it."""
    edited = load(str(base), **given)
    for number in range(times):
        edited.apply(random_patch(edited, number + 1))
    export_merged(edited, out)
    assert torch.equal(logits(load(str(out)).model), logits(edited.model))
    return edited


@over_shapes
@pytest.mark.parametrize("size", SOURCES)
def test_all_files_but_weights_are_the_same_and_only_edited_tensors_change(
    size: str, model_type: str, tmp_path: Path
) -> None:
    base, out = source(model_type, tmp_path / "base", SOURCES[size]), tmp_path / "out"
    edited = exported(base, out)
    before, after = files(base), files(out)
    assert after.pop("README.base.md") == before.pop("README.md")
    weights = {name for name in before if name.startswith("model") and "index" not in name}
    for name in before.keys() - weights - NOT_COPIED.keys():
        assert after[name] == before[name], name
    added = {name for name in after.keys() - before.keys() if not name.startswith("patches/")}
    assert added == {"README.md"}
    assert not after.keys() & NOT_COPIED.keys()
    old, new = stored(base), stored(out)
    assert [set(each) for each in old.values()] == [set(each) for each in new.values()]
    assert (len(old) > 1) == (size == "shards")
    changed = {
        name
        for file, tensors in old.items()
        for name, tensor in tensors.items()
        if bits(tensor) != bits(new[file][name])
    }
    assert len(changed) == len(edited.weight_patches[0].updates)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("size", SOURCES)
def test_bin_files_become_safetensors_with_the_same_names(
    size: str, model_type: str, tmp_path: Path
) -> None:
    like = source(model_type, tmp_path / "like", SOURCES[size])
    base = source(model_type, tmp_path / "base", SOURCES[size], bins=True)
    exported(base, tmp_path / "out")
    old, new = stored(like), stored(tmp_path / "out")
    assert {name: set(each) for name, each in old.items()} == {n: set(e) for n, e in new.items()}
    assert not [name for name in files(tmp_path / "out") if ".bin" in name]


def test_names_without_a_prefix_and_masks_of_old_checkpoints_are_kept(tmp_path: Path) -> None:
    base = source("gpt2", tmp_path / "base")
    held = {
        n.removeprefix("transformer."): t for n, t in _tensors(base / "model.safetensors").items()
    }
    held["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    (base / "model.safetensors").unlink()
    torch.save(held, base / "pytorch_model.bin")
    exported(base, tmp_path / "out")
    assert stored(tmp_path / "out")["model.safetensors"].keys() == held.keys()


def test_a_tied_head_that_is_stored_twice_stays_so(tmp_path: Path) -> None:
    base = source("qwen2", tmp_path / "base")
    held = _tensors(base / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"]
    (base / "model.safetensors").unlink()
    torch.save(held, base / "pytorch_model.bin")  # both share memory, as in old checkpoints
    exported(base, tmp_path / "out", dtype=torch.bfloat16)
    new = stored(tmp_path / "out")["model.safetensors"]
    assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])


@pytest.mark.parametrize("size", SOURCES)
@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma3"])
def test_an_untied_head_joins_the_last_file_and_the_config_says_so(
    model_type: str, size: str, tmp_path: Path
) -> None:
    base, out = source(model_type, tmp_path / "base", SOURCES[size]), tmp_path / "out"
    edited = load(str(base))
    head = edited.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() + 1)
    for config in (edited.model.config, edited.model.config.get_text_config()):
        config.tie_word_embeddings = False
    export_merged(edited, out)
    assert torch.equal(logits(load(str(out)).model), logits(edited.model))
    (last, old), (_, new) = list(stored(base).items())[-1], list(stored(out).items())[-1]
    assert len(new.keys() - old.keys()) == 1
    if size == "shards":
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert {index["weight_map"][name] for name in new} == {last}
    old_config, new_config = (
        json.loads((each / "config.json").read_text()) for each in (base, out)
    )
    inner = new_config.get("text_config", new_config)
    assert inner.pop("tie_word_embeddings") is False
    for values in (old_config, new_config, old_config.get("text_config", {})):
        values.pop("tie_word_embeddings", None)
    assert new_config == old_config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stored_dtypes_are_kept_unless_another_was_asked_for(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    base = source("llama", tmp_path / "base")
    declared, path = str(dtype).removeprefix("torch."), base / "config.json"
    path.write_text(path.read_text().replace('"float32"', f'"{declared}"'))
    wide = ("norm", "down_proj")  # narrower or wider than the model in memory
    held = _tensors(base / "model.safetensors")
    mixed = {n: t if any(w in n for w in wide) else t.bfloat16() for n, t in held.items()}
    (base / "model.safetensors").unlink()
    torch.save(mixed, base / "pytorch_model.bin")
    edited = exported(base, tmp_path / "same")
    new = stored(tmp_path / "same")["model.safetensors"]
    assert {n: t.dtype for n, t in new.items()} == {n: t.dtype for n, t in mixed.items()}
    changed = {name for name in mixed if bits(mixed[name]) != bits(new[name])}
    assert changed == set(edited.weight_patches[0].updates)
    assert (tmp_path / "same" / "config.json").read_bytes() == path.read_bytes()
    exported(base, tmp_path / "other", dtype=torch.float16)
    new = stored(tmp_path / "other")["model.safetensors"]
    assert {tensor.dtype for tensor in new.values()} == {torch.float16}
    text = (tmp_path / "other" / "config.json").read_text()
    assert json.loads(text) == {**json.loads(path.read_text()), "torch_dtype": "float16"}


def test_weights_that_are_stored_otherwise_are_written_by_transformers(tmp_path: Path) -> None:
    base, out = source("llama", tmp_path / "base"), tmp_path / "out"
    edited = load(str(base))
    edited.apply(random_patch(edited, 1))
    saved_base("gpt2", base)
    write_older_form(base)
    export_merged(edited, out)
    assert torch.equal(logits(load(str(out)).model), logits(edited.model))
    assert (out / "LICENSE").read_bytes() == OTHERS["LICENSE"]
    assert "rope_parameters" not in json.loads((out / "config.json").read_text())


def test_an_export_of_an_export_has_the_card_of_the_base_and_no_old_patches(
    tmp_path: Path,
) -> None:
    base = source("llama", tmp_path / "base")
    exported(base, tmp_path / "first", times=2)
    exported(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "second" / "README.base.md").read_text() == "the card of the base"
    assert len(list((tmp_path / "second" / "patches").iterdir())) == 1


def test_a_hub_name_is_saved_like_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    place = cache / "models--owner--name"
    snapshot = place / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    base = source("llama", tmp_path / "base")
    shutil.copytree(base, snapshot)
    edited = load(str(base))
    edited.apply(random_patch(edited, 1))
    edited.model.config._name_or_path = edited.model.name_or_path = "owner/name"
    edited.model.config._commit_hash = commit
    shutil.rmtree(base)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    export_merged(edited, tmp_path / "out")
    after = files(tmp_path / "out")
    assert {name: after[name] for name in OTHERS} == OTHERS
    assert after["config.json"] == (snapshot / "config.json").read_bytes()


@pytest.mark.parametrize("model_type", CONFIGS | EXPERTS)
def test_the_older_form_of_a_config_reads_the_same(model_type: str, tmp_path: Path) -> None:
    base = saved_base(model_type, tmp_path)
    before = AutoConfig.from_pretrained(base).to_dict()
    write_older_form(base)
    text = (base / "config.json").read_text()
    assert "rope_parameters" not in text
    assert '"dtype"' not in text
    after = AutoConfig.from_pretrained(base).to_dict()
    if (inner := before.get("rope_parameters")) and "partial_rotary_factor" in inner:
        before.pop("partial_rotary_factor", None)  # in 5.16 a field besides, which is not read
    assert {key: after[key] for key in before} == before


SCALING = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}


def test_the_older_form_keeps_scaled_positions(tmp_path: Path) -> None:
    base = saved_base("llama", tmp_path)
    path = base / "config.json"
    config = json.loads(path.read_text()) | {"rope_parameters": SCALING}
    path.write_text(json.dumps(config))
    write_older_form(base)
    older = json.loads(path.read_text())
    assert older["rope_theta"] == 500000.0
    assert older["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    read = AutoConfig.from_pretrained(base).rope_parameters
    assert {key: read[key] for key in SCALING} == SCALING


def test_the_demo_model_is_in_the_older_form() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    tokenizer = json.loads((MODEL_DIR / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
