"""Checkpoints of bitsandbytes in 4 bits: dequantised once, to the values that it computes with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import errata
from errata.core.errors import ErrataError
from errata.models import bitsandbytes as module
from errata.models.sources import check_quantisation
from tiny import tiny_model, tiny_tokenizer

bnb = pytest.importorskip("bitsandbytes")


def quantised(folder: Path, kind: str, nested: bool, dtype: torch.dtype = torch.float32) -> Path:
    """Write a quantised pico model of two shards and more, as `save_pretrained` does."""
    from transformers import BitsAndBytesConfig

    tiny_model("llama", dtype).save_pretrained(folder / "plain")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "plain", quantization_config=config, device_map={"": "cpu"}, dtype=dtype
    )
    model.save_pretrained(folder / "bnb", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder / "bnb")
    assert "quantization_config" in json.loads((folder / "bnb" / "config.json").read_text())
    return folder / "bnb"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("kind", "nested", "dtype"),
    [
        ("nf4", True, torch.float32),
        ("nf4", False, torch.bfloat16),
        ("fp4", False, torch.float16),
    ],
)
def test_every_weight_is_what_bitsandbytes_dequantises(
    kind: str, nested: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder, said = quantised(tmp_path, kind, nested, dtype), list[str]()
    edited = errata.load(folder, say=said.append)
    theirs = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}).dequantize()
    assert edited.model.dtype == dtype
    expected = dict(theirs.named_parameters())
    for name, weight in edited.model.named_parameters():
        torch.testing.assert_close(weight, expected[name].to(dtype), rtol=0, atol=0)
    plain = dict(tiny_model("llama", dtype).named_parameters())
    assert any(not torch.equal(plain[name], weight) for name, weight in expected.items())
    assert edited.base.quantisation == f"bitsandbytes {kind}"
    assert len(said) == 1 and said[0].startswith("dequantising bnb once to ")
    again = errata.load(folder, say=said.append)
    assert len(said) == 1 and again.base == edited.base


def test_without_the_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantised(tmp_path, "nf4", False)
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    with pytest.raises(ErrataError, match=r"quantised \(bitsandbytes\)") as caught:
        errata.load(folder)
    assert caught.value.hints[0] == "pip install 'errata-lm[bitsandbytes]', which dequantises them"


def test_weights_that_lack_their_scales_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = quantised(tmp_path, "nf4", False)
    for path in folder.glob("*.safetensors"):
        held = {n: t for n, t in load_file(path).items() if not n.endswith(".quant_map")}
        save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(ErrataError, match="cannot be dequantised"):
        errata.load(folder)
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = quantised(tmp_path, "nf4", False)
    path = sorted(folder.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ErrataError, match=f"{path.name} is truncated"):
        errata.load(folder)


def test_a_checkpoint_on_the_hub_is_to_be_downloaded_first() -> None:
    config = tiny_model("llama").config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ErrataError, match="quantised") as caught:
        check_quantisation("owner/model", "owner/model", config)
    assert "hf download owner/model" in caught.value.hints[0]


def test_8_bits_are_refused_since_their_results_depend_on_the_inputs(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ErrataError, match=r"quantised \(bitsandbytes\)"):
        errata.load(tmp_path)


@pytest.mark.slow
def test_nothing_but_the_conversion_is_reported(tmp_path: Path) -> None:
    """In a new process, where bitsandbytes is imported for the first time."""
    folder = quantised(tmp_path, "nf4", nested=False)
    command = [sys.executable, "-m", "errata", "chat", str(folder), "-p", "The sea"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("dequantising bnb once to ")
