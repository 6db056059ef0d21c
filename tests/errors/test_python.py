"""What a program gets wrong is met with an `ErrataError`, and objects show themselves in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata import EditRequest, ErrataError
from errata.methods import METHODS
from errata.methods.edit import prepare
from laws.bench import edited_model, patch_of
from tiny import FACTS, tiny_model

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "words for requests": (
        lambda: errata.edit(edited_model("llama"), ["Rome"]),  # type: ignore[list-item]
        "a list of EditRequest",
    ),
    "no requests": (lambda: errata.edit(edited_model("llama"), []), "nothing to edit"),
    "a prompt that is none": (lambda: EditRequest.parse(3, "Rome"), "3 is not a prompt"),  # type: ignore[arg-type]
    "a dtype that is none": (
        lambda: errata.load("demo", dtype="float99"),
        "unsupported dtype 'float99'",
    ),
    "a dtype of whole numbers": (
        lambda: errata.load("demo", dtype=torch.int8),
        "unsupported dtype",
    ),
    "a setting within another": (
        lambda: prepare(edited_model("llama"), METHODS["rome"], {"steps": 3}),
        "steps is one of search: write search.steps",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_told_in_words(wrong: str) -> None:
    work, message = WRONG[wrong]
    with pytest.raises(ErrataError) as caught:
        work()
    assert message in "\n".join((caught.value.message, *caught.value.hints))


def test_one_request_need_not_be_a_list() -> None:
    edited = edited_model("llama")
    patch = errata.edit(
        edited,
        FACTS[0],
        "rome",
        blocks=(1,),
        second_moment=False,
        search={"steps": 2, "max_steps": 2},
    )
    assert patch.provenance.requests == (FACTS[0],)


def test_a_type_that_is_no_family_is_told_before_weights_are_read(tmp_path: Path) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "biogpt", "architectures": ["BioGptForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ErrataError, match="models of type 'biogpt' are not supported yet"):
        errata.load(str(tmp_path))


def test_models_and_patches_show_themselves_in_a_line() -> None:
    edited, patch = edited_model("llama"), patch_of("llama", "rome")
    edited.apply(patch)
    shown = repr(edited)
    assert "\n" not in shown and len(shown) < 200
    assert "tiny-llama" in shown and repr(patch) in shown
    assert patch.digest[:12] in repr(patch) and "by rome" in repr(patch)
