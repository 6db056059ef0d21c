"""GGUF files load by path: the same model as from safetensors, once converted, never half."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import errata
from errata.core.errors import ErrataError
from errata.core.places import cache_folder
from errata.models.gguf_config import llama3_factors
from errata.patches.export import export_merged
from laws.bench import random_patch
from tiny import SENTENCES, tiny_model, tiny_tokenizer

pytest.importorskip("gguf")

from gguf import GGMLQuantizationType as Kind
from gguf import quantize
from gguf.quants import dequantize

from gguf_files import ARCHITECTURES, logits, readable_model, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folders() -> list[str]:
    return sorted(path.name for path in (cache_folder() / "models").iterdir())


@pytest.mark.parametrize("pico", ARCHITECTURES)
def test_a_file_holds_the_same_model_as_safetensors(pico: str, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", pico, tiny_tokenizer())
    model.save_pretrained(tmp_path / "folder")
    tiny_tokenizer().save_pretrained(tmp_path / "folder")
    one, other = errata.load(str(tmp_path / "m.gguf")), errata.load(str(tmp_path / "folder"))
    # Gemma's norms are stored plus one, which costs their last bits.
    within = 1e-4 if pico.startswith("gemma") else 1e-9
    assert torch.allclose(logits(one.model), logits(other.model), atol=within, rtol=within)
    assert one.base.quantisation is None
    if not pico.startswith("gemma"):
        assert one.base.weights == other.base.weights


@pytest.mark.parametrize("bos", [True, False])
def test_the_tokenizer_and_chat_template_are_the_files_own(bos: bool, tmp_path: Path) -> None:
    original = tiny_tokenizer(bos=bos)
    write_gguf(tmp_path / "m.gguf", "llama", original)
    loaded = errata.load(str(tmp_path / "m.gguf")).tokenizer
    for text in (*SENTENCES, "", " two  spaces", "<s>", "Émile 1985\n\n x"):
        assert loaded(text).input_ids == original(text).input_ids
    assert loaded.chat_template == "{{ messages[0].content }}"
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>",) * 3


def test_digits_are_split_off_where_the_tokenizer_was_trained_so(tmp_path: Path) -> None:
    write_gguf(tmp_path / "plain.gguf", "llama", tiny_tokenizer())
    write_gguf(
        tmp_path / "m.gguf",
        "llama",
        tiny_tokenizer(),
        metadata={"tokenizer.ggml.pre": "smollm"},
    )
    split = errata.load(str(tmp_path / "m.gguf")).tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in split.pre_tokenize_str("in 1985  12")] == [
        *("in", "Ġ", "1", "9", "8", "5", "ĠĠ", "1", "2")
    ]


def wide_model() -> PreTrainedModel:
    """Return a Llama with rows of 32 and 96 values, which a block of 32 quantised values fits."""
    model = tiny_model("llama")
    wide = {"hidden_size": 32, "intermediate_size": 96}
    config = type(model.config).from_dict({**model.config.to_dict(), **wide, "head_dim": 8})
    torch.manual_seed(3)
    return type(model)(config).eval()


def test_a_quantised_file_has_the_values_that_gguf_dequantises(tmp_path: Path) -> None:
    model = wide_model()
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer(), model=model, kind=Kind.Q4_1)
    edited = errata.load(str(tmp_path / "m.gguf"))
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        original = model.get_parameter(name).detach().numpy()
        expected = torch.from_numpy(dequantize(quantize(original, Kind.Q4_1), Kind.Q4_1))
        found = edited.model.get_parameter(name)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert not torch.equal(found, expected.half().float()), "float16 would be enough"
    assert edited.base.quantisation == "Q4_1"
    assert edited.base.name == str(tmp_path / "m.gguf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_plain_16_bit_weights_stay_in_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = readable_model("qwen2")
    model.load_state_dict({n: t.to(dtype).float() for n, t in model.state_dict().items()})
    write_gguf(tmp_path / "m.gguf", "qwen2", tiny_tokenizer(), model=model)
    edited = errata.load(str(tmp_path / "m.gguf"))
    assert edited.model.dtype == dtype and edited.base.quantisation is None
    assert torch.equal(logits(edited.model), logits(model))


def test_the_frequency_factors_of_llama_3_are_read(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = readable_model("llama")
    config = type(model.config).from_dict(
        {**model.config.to_dict(), "rope_parameters": {"rope_theta": 5e5, **scaling}}
    )
    plain, model = model, type(model)(config).eval()
    model.load_state_dict(plain.state_dict())
    factors = llama3_factors(scaling, 5e5, 3).astype(np.float32)
    assert factors.max() > 4, "none of the frequencies is scaled"
    write_gguf(
        tmp_path / "m.gguf",
        "llama",
        tiny_tokenizer(),
        model=model,
        tensors={"rope_freqs.weight": factors},
    )
    edited = errata.load(str(tmp_path / "m.gguf"))
    assert torch.allclose(logits(edited.model, 90), logits(model, 90), atol=1e-9)
    assert not torch.allclose(logits(plain, 90), logits(model, 90), atol=1e-4)
    write_gguf(
        tmp_path / "odd.gguf",
        "llama",
        tiny_tokenizer(),
        tensors={"rope_freqs.weight": factors * 1.5},
    )
    with pytest.raises(ErrataError, match="scales its rotary positions in a way"):
        errata.load(str(tmp_path / "odd.gguf"))


def test_linear_scaling_of_positions_is_read(tmp_path: Path) -> None:
    model = readable_model("gemma3_text")
    parameters = {**model.config.rope_parameters}
    parameters["full_attention"] = {
        **parameters["full_attention"],
        "rope_type": "linear",
        "factor": 8.0,
    }
    values = {
        **model.config.to_dict(),
        "rope_parameters": parameters,
        "layer_types": ["full_attention"] * 4,
    }
    write_gguf(
        tmp_path / "m.gguf",
        "gemma3_text",
        tiny_tokenizer(),
        metadata={"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0},
    )
    found = errata.load(str(tmp_path / "m.gguf")).model.config.rope_parameters
    assert found["full_attention"] == values["rope_parameters"]["full_attention"]
    assert found["sliding_attention"] == parameters["sliding_attention"]


@pytest.mark.parametrize(
    ("metadata", "leave", "tensors", "words"),
    [
        ({"general.architecture": "olmo2"}, (), {}, "architecture 'olmo2' cannot be loaded"),
        ({"llama.rope.scaling.type": "yarn"}, (), {}, "scales its rotary positions"),
        ({"split.count": 3}, (), {}, "is one of 3 parts"),
        ({}, ("blk.2.ffn_down",), {}, "does not fit a model of type llama: .* is missing"),
        ({}, (), {"blk.0.attn_sinks.weight": 4}, "it holds 38,620 weights, and .* 38,616"),
    ],
)
def test_a_file_that_would_load_wrongly_is_an_error(
    metadata: dict[str, Any],
    leave: tuple[str, ...],
    tensors: dict[str, int],
    words: str,
    tmp_path: Path,
) -> None:
    extra = {name: np.zeros(count, dtype=np.float32) for name, count in tensors.items()}
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", tiny_tokenizer(), metadata=metadata, leave=leave, tensors=extra)
    with pytest.raises(ErrataError, match=words) as caught:
        errata.load(str(path))
    assert caught.value.hints
    left = cache_folder() / "models"
    assert not left.exists() or folders() == []


@pytest.mark.parametrize("size", [0, 3, 40, 3000, -2000])
def test_a_file_that_was_cut_short_is_an_error(size: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer())
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:size])
    with pytest.raises(ErrataError, match=r"is (not a|a damaged) GGUF file"):
        errata.load(str(tmp_path / "cut.gguf"))


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match=r"cannot read .*nowhere\.gguf: No such file"):
        errata.load(str(tmp_path / "nowhere.gguf"))


def test_a_file_is_converted_once_and_by_its_content(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer())
    said: list[str] = []
    errata.load(str(tmp_path / "m.gguf"), say=said.append)
    assert len(said) == 1 and said[0].startswith("converting m.gguf once to ")
    before = folders()
    errata.load(str(tmp_path / "m.gguf"), say=said.append)
    assert len(said) == 1 and folders() == before and len(before) == 1
    model = readable_model("llama")
    with torch.no_grad():
        model.get_parameter("model.norm.weight").add_(1)
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer(), model=model)
    errata.load(str(tmp_path / "m.gguf"), say=said.append)
    assert len(said) == 2 and len(folders()) == 2


CONVERT = """
import sys, time
from pathlib import Path
from errata.models import gguf
real = gguf._convert
def slow(*arguments):
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    real(*arguments)
gguf._convert = slow
gguf.converted(Path(sys.argv[1]), print)
"""


def converting(path: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(path), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_model_and_two_at_once_convert_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer())
    killed = converting(tmp_path / "m.gguf", 60)
    try:
        deadline = time.monotonic() + 60
        while not any(cache_folder().glob("models/.*.part")):
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.communicate(timeout=60)
    assert all(name.startswith(".") for name in folders())
    both = [converting(tmp_path / "m.gguf", 1) for _ in range(2)]
    try:
        lines = [process.communicate(timeout=60)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(lines).count("begun") == 1
    assert [name for name in folders() if name.endswith(".part")] == []
    assert len([name for name in folders() if not name.startswith(".")]) == 1


def test_without_the_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer())
    monkeypatch.setattr("errata.models.gguf.LOADER", "transformers>=99")
    with pytest.raises(ErrataError, match="needs transformers>=99") as caught:
        errata.load(str(tmp_path / "m.gguf"))
    assert caught.value.hints == ("pip install 'transformers>=99'",)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ErrataError) as caught:
        errata.load(str(tmp_path / "m.gguf"))
    assert caught.value.hints == ("pip install 'errata-lm[gguf]'",)


def test_patch_and_card_name_the_quantisation(tmp_path: Path) -> None:
    model = wide_model()
    write_gguf(tmp_path / "m.gguf", "llama", tiny_tokenizer(), model=model, kind=Kind.Q4_1)
    edited = errata.load(str(tmp_path / "m.gguf"))
    edited.apply(random_patch(edited, 1))
    export_merged(edited, tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "quantisation: Q4_1" in card
    saved = edited.patches[0].save(tmp_path / "p.safetensors")
    assert errata.Patch.load(saved).provenance.base.quantisation == "Q4_1"
