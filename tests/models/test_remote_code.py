"""A checkpoint's own code never runs, and loading never asks on stdin whether it may."""

from __future__ import annotations

import ast
import io
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import errata
from errata.core.errors import ErrataError
from patches.folders import logits, saved_adapter, saved_base
from tiny import tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from conftest import Shell

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path(__file__).with_name("owned").touch()
Path({owned!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MAPS: dict[str, dict[str, Any]] = {
    "config.json": {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
    },
    "tokenizer_config.json": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
}

NO_CODE = ("PeftConfig", "GenerationConfig")
"""Classes whose loaders run no code, and take no `trust_remote_code`."""


class Answering(io.StringIO):
    """A stdin that answers yes and counts how often it is read."""

    reads = 0

    def read(self, *_: Any) -> str:
        self.reads += 1
        return "y\n"

    readline = read


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Answering:
    answering = Answering()
    monkeypatch.setattr(sys, "stdin", answering)
    return answering


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working folder of a user, with the model `own` that brings its own code."""
    saved_base("llama", tmp_path / "own")
    (tmp_path / "own" / "own.py").write_text(CODE.format(owned=str(tmp_path / "owned")))
    return tmp_path


def with_code(model: Path, **changes: dict[str, Any]) -> None:
    """Add an `auto_map` and other values to a folder's JSON files."""
    for name, values in changes.items():
        path = model / f"{name}.json"
        content = json.loads(path.read_text()) | values | {"auto_map": MAPS[path.name]}
        path.write_text(json.dumps(content))


OWN_MODEL = {"config": {"model_type": "own", "architectures": ["OwnModel"]}}
OWN_TOKENIZER = {"tokenizer_config": {"tokenizer_class": "OwnTokenizer"}}


@pytest.mark.parametrize("own", [OWN_MODEL, OWN_TOKENIZER], ids=["model", "tokenizer"])
def test_the_own_code_of_a_checkpoint_does_not_run(
    own: dict[str, Any], folder: Path, stdin: Answering
) -> None:
    with_code(folder / "own", **own)
    with pytest.raises(ErrataError, match="needs code of its own") as caught:
        errata.load(str(folder / "own"))
    assert any("architecture" in hint for hint in caught.value.hints)
    assert stdin.reads == 0
    assert not list(folder.rglob("owned"))


@pytest.mark.parametrize(
    "words",
    [
        'edit own "The {Lantern Bridge} is in" Quenby',
        "chat own -p x",
        "export own --patch nowhere.safetensors --to merged out",
        'lens own "The {Lantern Bridge} is in"',
    ],
    ids=lambda words: words.split()[0],
)
def test_a_verb_does_not_read_stdin_to_ask_whether_code_may_run(
    words: str, folder: Path, stdin: Answering, shell: Shell
) -> None:
    with_code(folder / "own", **OWN_MODEL)
    said = shell(*shlex.split(words))
    assert said.code == 1
    assert stdin.reads == 0
    assert "Do you wish to run" not in said.out + said.err
    assert not list(folder.rglob("owned"))


def test_a_known_architecture_is_loaded_by_the_code_of_transformers(
    folder: Path, stdin: Answering
) -> None:
    with_code(folder / "own", config={}, tokenizer_config={})
    edited = errata.load(str(folder / "own"))
    assert torch.equal(logits(edited.model), logits(tiny_model("llama")))
    assert edited.tokenizer("The sea")["input_ids"] == tiny_tokenizer()("The sea")["input_ids"]
    assert type(edited.model).__module__.startswith("transformers.")
    assert stdin.reads == 0
    assert not list(folder.rglob("owned"))


def test_no_loader_of_transformers_is_left_to_ask() -> None:
    calls = [
        (path.name, node)
        for path in Path(errata.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
    ]
    calls = [call for call in calls if ast.unparse(call[1].func).split(".")[0] not in NO_CODE]
    assert len(calls) > 4
    asking = [
        f"{name}: {ast.unparse(node)}"
        for name, node in calls
        if "trust_remote_code=False" not in map(ast.unparse, node.keywords)
    ]
    assert not asking


def test_an_adapter_whose_folder_has_code_does_not_run_it(folder: Path, stdin: Answering) -> None:
    adapter = saved_adapter("llama", folder / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "OwnModel", "parent_library": "own"}
    config["trust_remote_code"] = True
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "own.py").write_text((folder / "own" / "own.py").read_text())
    errata.load(str(folder / "own"), adapter=adapter)
    assert stdin.reads == 0
    assert not list(folder.rglob("owned"))
