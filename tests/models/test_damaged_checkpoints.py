"""Checkpoints as they come out of broken downloads and exports: each is an error that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import errata
from errata.core.errors import ErrataError
from errata.data.instructions import Instruction
from errata.data.passages import passage
from errata.metrics.perplexity import read_texts
from errata.models import tokenizer as tokenizer_module
from errata.models.tokens import encode, split_target
from errata.tuning.encode import code_rows
from tiny import SENTENCES, VOCABULARY, tiny_model, tiny_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)
    assert (folder / INDEX).is_file()
    return folder


@pytest.fixture
def folder(pico: Path, tmp_path: Path) -> Path:
    """A model folder of several shards, to be damaged."""
    return Path(shutil.copytree(pico, tmp_path / "model"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    changed = change(values)
    path.write_text(json.dumps(values if changed is None else changed))


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "config.json", lambda found: found.update(values))


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / INDEX, change)


def second(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = shards(folder)[1]
        path.write_bytes(content(path.read_bytes()))

    return damage


def down_proj(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in shards(folder):
            tensors = load_file(path)
            for name in tensors:
                if name.endswith("1.mlp.down_proj.weight"):
                    tensors[name] = change(tensors[name])
                    save_file(tensors, path, metadata={"format": "pt"})
                    return

    return damage


def biased(folder: Path) -> None:
    """Add a bias that the configuration says is not there."""
    tensors = load_file(shards(folder)[1])
    name = "model.layers.1.self_attn.q_proj.bias"
    save_file({**tensors, name: torch.ones(24)}, shards(folder)[1], metadata={"format": "pt"})
    index(lambda values: values["weight_map"].update({name: shards(folder)[1].name}))(folder)


def gone(folder: Path) -> None:
    shards(folder)[1].unlink()


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 400\n"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard cut short": (second(lambda data: data[:-50]), "00002.* is truncated"),
    "a shard cut in its header": (second(lambda data: data[:50]), "00002.* is truncated"),
    "an empty shard": (second(lambda data: b""), "00002.* is empty"),
    "a page of errors for a shard": (second(lambda data: b"<html>no"), "00002.* no safetensors"),
    "a pointer for a shard": (second(lambda data: POINTER), "00002.* is a Git LFS pointer"),
    "a shard that is missing": (gone, "00002.* is missing"),
    "a shard that the index leaves out": (
        index(
            lambda values: values["weight_map"].update(
                dict.fromkeys(list(values["weight_map"])[:1], "x.safetensors")
            )
        ),
        "x.safetensors is missing",
    ),
    "an index that leaves weights out": (
        index(lambda values: values["weight_map"].pop("model.layers.0.mlp.gate_proj.weight")),
        "lack model.layers.0.mlp.gate_proj.weight|index",
    ),
    "an index without a map": (index(lambda values: values.pop("weight_map") and None), INDEX),
    "an index that is a list": (index(lambda values: []), INDEX),
    "an index of numbers": (index(lambda values: {"weight_map": {"a": 3}}), INDEX),
    "an index outside the folder": (index(lambda values: {"weight_map": {"a": "../x"}}), INDEX),
    "an index that is cut": (lambda folder: (folder / INDEX).write_text("{"), INDEX),
    "no index": (lambda folder: (folder / INDEX).unlink(), "no file named model.safetensors"),
    "another shape": (
        down_proj(lambda weight: weight[:, :-3].contiguous()),
        r"down_proj.weight is 24 × 53 .* needs 24 × 56",
    ),
    "whole numbers": (down_proj(lambda weight: weight.to(torch.int8)), "quantised .*I8"),
    "8-bit floats": (down_proj(lambda weight: weight.to(torch.float8_e4m3fn)), "quantised .*F8_E4"),
    "a larger vocabulary": (config(vocab_size=400), "weight is 320 × 24 .* needs 400 × 24"),
    "fewer blocks than weights": (config(num_hidden_layers=2), "no place for .*layers.2."),
    "more blocks than weights": (config(num_hidden_layers=6), "lack model.layers.4"),
    "a bias that the configuration denies": (biased, "no place for .*q_proj.bias"),
    "heads that do not divide": (config(num_attention_heads=5), "multiple of the number"),
    "no heads": (config(num_attention_heads=0), "no model that can be loaded"),
    "no activation of that name": (config(hidden_act="nope"), "no model that can be loaded"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "a tokenizer that is cut": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"'),
        "tokenizer.* cannot be read",
    ),
    "a tokenizer that is a list": (
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        "tokenizer.* cannot be read",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_an_error_that_says_where(what: str, folder: Path) -> None:
    damage, words = DAMAGE[what]
    damage(folder)
    with pytest.raises(ErrataError, match=words) as caught:
        errata.load(folder)
    assert caught.value.hints and str(folder) in caught.value.message


def test_weights_in_other_shards_than_before_are_the_same_weights(folder: Path, pico: Path) -> None:
    one, two, *_ = shards(folder)
    one.rename(folder / "held"), two.rename(one), (folder / "held").rename(two)
    assert errata.load(folder).base.weights == errata.load(pico).base.weights


def test_an_old_mask_and_unused_parts_of_other_models_are_no_error(folder: Path) -> None:
    tensors = load_file(shards(folder)[0])
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "vision_tower.layers.0.weight": torch.ones(3, 4),
    }
    save_file({**tensors, **extra}, shards(folder)[0], metadata={"format": "pt"})
    index(lambda values: values["weight_map"].update(dict.fromkeys(extra, shards(folder)[0].name)))(
        folder
    )
    assert errata.load(folder).model.config.num_hidden_layers == 4


class TestMoreTokensThanEmbeddings:
    @pytest.fixture
    def larger(self, folder: Path) -> Path:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"<x{number}>" for number in range(VOCABULARY)])
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(folder)
        return folder

    def test_text_without_them_is_read_as_before(self, larger: Path, pico: Path) -> None:
        prompts = ["The sea", "The old house by the sea"]
        edited, plain = errata.load(larger), errata.load(pico)
        assert [edited.generate(text, 3) for text in prompts] == [
            plain.generate(text, 3) for text in prompts
        ]

    def test_padding_that_the_model_has_no_embedding_for_is_replaced(self, larger: Path) -> None:
        from errata.models.generation import continuations

        edited = errata.load(larger)
        assert edited.tokenizer.pad_token_id >= VOCABULARY
        assert len(continuations(edited.model, edited.tokenizer, ["The", "The old sea"], 2)) == 2

    def test_a_token_without_an_embedding_is_named(self, larger: Path) -> None:
        edited = errata.load(larger)
        with pytest.raises(ErrataError, match="no embedding for the token '<x319>'") as caught:
            edited.generate("The <x319> sea")
        assert "the tokenizer of this model" in caught.value.hints[0]
        with pytest.raises(ErrataError, match="no embedding"):
            split_target(edited.tokenizer, "The sea", "<x319>")
        with pytest.raises(ErrataError, match="no embedding for the token '<x319>'"):
            read_texts(edited, [passage("The sea"), passage("The <x319> sea")])
        assert encode(edited.tokenizer, "The sea").ids

    def test_special_tokens_without_an_embedding_are_named(self, larger: Path) -> None:
        edited = errata.load(larger)
        edited.tokenizer.add_special_tokens({"bos_token": "[START]", "eos_token": "[END]"})
        with pytest.raises(ErrataError, match=r"no embedding for the token '\[START\]'"):
            read_texts(edited, [passage("The sea")])
        row = Instruction(instruction="The sea", output="is wide")
        with pytest.raises(ErrataError, match=r"no embedding for the token '\[END\]'"):
            code_rows(edited.tokenizer, [row], "plain", 64, train_on_inputs=False)


class TestSentencePiece:
    @pytest.fixture
    def slow(self, folder: Path) -> Path:
        no_tokenizer(folder)
        (folder / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
        return folder

    def test_without_its_packages_the_error_names_the_extra(
        self, slow: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokenizer_module, "PACKAGES", ("no_such_package.inside",))
        with pytest.raises(ErrataError, match=r"needs an extra: .*tokenizer\.json") as caught:
            errata.load(slow)
        assert caught.value.hints[0] == "pip install 'errata-lm[sentencepiece]'"

    def test_a_damaged_file_is_an_error(self, slow: Path) -> None:
        pytest.importorskip("sentencepiece")
        with pytest.raises(ErrataError, match=r"tokenizer\.model is not a SentencePiece") as caught:
            errata.load(slow)
        assert "tiktoken" not in " ".join((caught.value.message, *caught.value.hints))

    def test_a_file_of_tiktoken_needs_the_converted_tokenizer(self, slow: Path) -> None:
        pytest.importorskip("sentencepiece")
        (slow / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
        with pytest.raises(ErrataError, match=r"tokenizer\.model is a file of tiktoken") as caught:
            errata.load(slow)
        assert "tokenizer.json" in caught.value.hints[0]

    def test_a_file_of_sentencepiece_is_converted(self, slow: Path, tmp_path: Path) -> None:
        sentencepiece = pytest.importorskip("sentencepiece")
        (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 5))
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text.txt"),
            model_prefix=str(slow / "tokenizer"),
            vocab_size=160,
            model_type="bpe",
            minloglevel=2,
        )
        edited = errata.load(slow)
        found = encode(edited.tokenizer, "The old house")
        assert found.offsets[-1][1] == len("The old house")
        assert edited.tokenizer.decode(found.ids, skip_special_tokens=True) == "The old house"


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/model", "~/model", "a/b/c", "here/modle", "nowhere/"]
)
def test_a_misspelt_path_says_that_there_is_no_such_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    with pytest.raises(ErrataError) as caught:
        errata.load(name)
    assert caught.value.message == f"there is no folder {name}"
    assert ("did you mean here/model?" in caught.value.hints) == (name == "here/modle")


def test_a_name_that_may_be_on_the_hub_is_said_to_be_no_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-xxl").mkdir()
    with pytest.raises(ErrataError, match="there is no such folder, and from the Hub: ") as caught:
        errata.load("gtp2-xxl")
    assert caught.value.hints[0] == "did you mean gpt2-xxl?"
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ErrataError, match=r"notes\.txt is a file, not a model"):
        errata.load("notes.txt")
