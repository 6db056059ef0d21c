"""Bad input is reported before the model is loaded: its weights take the longest of all."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from errata.patches import edited_model

if TYPE_CHECKING:
    from conftest import Shell

PROMPT = '"The {Lantern Bridge} is in"'
FACT = f"{PROMPT} Quenby"
SWEEP = "sweep-blocks pico --dataset one.jsonl"
MATRIX = "survival pico --dataset demo --data demo-new --edits 2"
BAD = {
    "a patch that is not there": (
        "chat pico -p x --patch nowhere.safetensors",
        "no patch at nowhere",
    ),
    "a damaged patch": ("eval pico --dataset one.jsonl --patch cut.safetensors", "not a patch"),
    "a patch of a later errata": (
        "ppl pico --text text.txt --patch newer.safetensors",
        "unknown patch format",
    ),
    "a device": ("chat pico -p x --device gpu", "cannot be moved to 'gpu'"),
    "a GPU": ("lens pico 'The {sea} is' --device cuda:7", "cannot be moved to 'cuda:7'"),
    "a dtype": ("chat pico -p x --dtype int4", "unsupported dtype"),
    "an adapter's kind": ("chat pico -p x --adapter nowhere --adapter-kind ia3", "ia3"),
    "blocks": ("stats pico --corpus text.txt --blocks a,b", "not a list of blocks"),
    "a corpus": ("stats pico --corpus nowhere.txt", "cannot read the corpus"),
    "a corpus without text": ("stats pico --corpus blank.txt --dry-run", "no text"),
    "a dataset": ("eval pico --dataset nowhere", "nowhere"),
    "a dataset of broken records": ("eval pico --dataset types.jsonl", "types.jsonl"),
    "results of an evaluation": (
        "eval pico --dataset one.jsonl --results text.txt",
        "cannot write results",
    ),
    "results of tasks": (
        "tasks pico --tasks text.jsonl --results text.txt",
        "cannot write results",
    ),
    "results of a tuning": ("tune pico --data demo-new --results text.txt", "cannot write results"),
    "a task": ("tasks pico --tasks nowhere", "nowhere"),
    "a template": ("tasks pico --tasks boolq --template nowhere", "template"),
    "a template of a chat": ("chat pico -p x --template alpaca", "unknown template"),
    "a template of an evaluation": (
        "eval pico --dataset one.jsonl --template alpaca",
        "template",
    ),
    "a system message without a chat": (
        "eval pico --dataset one.jsonl --system Hi",
        "needs template: chat",
    ),
    "a text": ("ppl pico --text nowhere.txt", "cannot read nowhere.txt"),
    "a stride wider than its window": (
        "ppl pico --text text.txt --window 4 --stride 5",
        "a stride of 5",
    ),
    "rows": ("tune pico --data nowhere.jsonl", "nowhere.jsonl"),
    "a setting of a tuning": ("tune pico --data demo-new --epochs none", "epochs"),
    "a prompt": ("lens pico 'no subject'", "subject is not marked"),
    "a target": ("export pico --to onnx new", "cannot export to"),
    "a folder that is full": ("export pico --to lora runs --patch patch.safetensors", "not empty"),
    "requests": ("edit pico --requests nowhere.jsonl", "cannot read nowhere"),
    "a method": (f"edit pico {FACT} --method nowhere", "no method"),
    "a setting of a trace": (f"trace pico {FACT} --samples 0", "samples"),
    "a prompt of a trace": ("trace pico 'no subject'", "subject is not marked"),
    "an empty answer": (f"trace pico {PROMPT} ''", "target: is empty"),
    "a dataset of a trace": ("trace pico --dataset nowhere", "nowhere"),
    "results of a trace": (f"trace pico {PROMPT} --results text.txt", "cannot write results"),
    "a figure of a trace": (f"trace pico {PROMPT} --plot gif", "gif"),
    "a dataset of edits": ("edit pico --dataset nowhere", "nowhere"),
    "a corpus of an edit": (f"edit pico {FACT} --corpus nowhere.txt", "cannot read the corpus"),
    "blocks of an edit": (f"edit pico {FACT} --blocks a,b", "blocks.0"),
    "a block twice": (f"edit pico {FACT} --blocks 1,1", "none twice"),
    "a setting of a method": (f"edit pico {FACT} --steps many", "steps"),
    "results of an edit": (f"edit pico {FACT} --results text.txt", "cannot write results"),
    "a dataset of a sweep": ("sweep-blocks pico --dataset nowhere", "nowhere"),
    "a corpus of a sweep": (f"{SWEEP} --corpus blank.txt", "no text"),
    "blocks of a sweep": (f"{SWEEP} --blocks a,b", "not a list of blocks"),
    "a setting of a swept method": (f"{SWEEP} --steps 0", "steps"),
    "results of a sweep": (f"{SWEEP} --results text.txt", "cannot write results"),
    "a dataset of a survival matrix": (
        "survival pico --data demo-new --dataset nowhere",
        "nowhere",
    ),
    "too few cases": (f"{MATRIX} --edits 900", "fewer than the 900 to edit"),
    "rows of a survival matrix": (
        "survival pico --dataset demo --edits 2 --data nowhere.jsonl",
        "nowhere.jsonl",
    ),
    "tasks of a survival matrix": (f"{MATRIX} --tasks nowhere", "nowhere"),
    "a text of a survival matrix": (f"{MATRIX} --text nowhere.txt", "cannot read nowhere.txt"),
    "a corpus of a survival matrix": (f"{MATRIX} --corpus nowhere.txt", "cannot read the corpus"),
    "a method's setting in a matrix": (f"{MATRIX} --set memit.blocks=[a]", "blocks.0"),
    "results of a survival matrix": (f"{MATRIX} --results text.txt", "cannot write results"),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_reported_before_the_model_is_loaded(
    what: str, shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(edited_model, "pretrained", load)
    command, words = BAD[what]
    said = shell(*shlex.split(command))
    assert said.code == 1, said.err
    assert said.err.startswith("error: ") and words in said.err
    assert said.out == ""


def test_a_model_would_be_loaded_otherwise(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str, *_: Any, **__: Any) -> NoReturn:
        loaded.append(name)
        raise AssertionError

    monkeypatch.setattr(edited_model, "pretrained", load)
    assert shell("chat", "pico", "-p", "x", "--patch", "patch.safetensors").code == 70
    assert loaded == ["pico"]
