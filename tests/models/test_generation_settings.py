"""Generation settings of a checkpoint: only its ends of sequence change what a model writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.models.generation import continuations, free_texts
from errata.models.tokens import encode
from errata.patches.edited_model import EditedModel
from errata.patches.export import export_merged
from errata.patches.weight_patch import WeightPatch
from tiny import FACTS, tiny_model, tiny_tokenizer

PROMPTS = ["The harbour of", "They", "The old house by the sea"]
SETTINGS: dict[str, Any] = {
    "do_sample": True,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 4,
    "length_penalty": 3.0,
    "penalty_alpha": 0.6,
    "num_return_sequences": 3,
    "stop_strings": ["e"],
    "suppress_tokens": list(range(100, 200)),
    "bad_words_ids": [[101], [102]],
    "forced_eos_token_id": 5,
    "min_new_tokens": 30,
    "max_length": 4,
    "max_time": 1e-9,
    "prompt_lookup_num_tokens": 3,
    "guidance_scale": 3.0,
    "return_dict_in_generate": True,
    "output_scores": True,
    "use_cache": False,
    "compile_config": {"mode": "default"},
    "pad_token_id": -1,
}
OUTPUTS = ("return_dict", "output_attentions", "output_hidden_states")
"""Settings of config.json that change what a forward pass returns."""


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pico: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico, tmp_path / "model"))


def write(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def written(folder: Path) -> tuple[list[str], ...]:
    edited = errata.load(folder)
    texts = free_texts(edited.model, edited.tokenizer, PROMPTS, tokens=12, seed=1)
    alone = [edited.generate(prompt, 5) for prompt in PROMPTS]
    return continuations(edited.model, edited.tokenizer, PROMPTS, 6), texts, alone


@pytest.fixture(scope="module")
def expected(pico: Path) -> tuple[list[str], ...]:
    return written(pico)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_checkpoint_changes_no_text(
    name: str, folder: Path, expected: tuple[list[str], ...]
) -> None:
    write(folder / "generation_config.json", **{name: SETTINGS[name]})
    assert written(folder) == expected


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "compile_config"])
def test_a_setting_of_the_configuration_changes_no_text(
    name: str, folder: Path, expected: tuple[list[str], ...]
) -> None:
    write(folder / "config.json", **{name: SETTINGS[name]})
    assert written(folder) == expected


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_a_forward_pass_returns_changes_no_text(
    name: str, folder: Path, expected: tuple[list[str], ...]
) -> None:
    write(folder / "config.json", **{name: name != "return_dict"})
    assert written(folder) == expected


@pytest.mark.parametrize("refused", [{}, {"num_return_sequences": 3}])
def test_the_ends_of_sequence_of_the_checkpoint_hold(refused: Any, folder: Path) -> None:
    """Also where Transformers refuses the rest of its settings."""
    edited = errata.load(folder)
    ids = torch.tensor([encode(edited.tokenizer, PROMPTS[0]).ids])
    first = int(edited.model(ids).logits[0, -1].argmax())
    write(folder / "generation_config.json", eos_token_id=[0, first], **refused)
    assert errata.load(folder).generate(PROMPTS[0], 6) == edited.tokenizer.decode([first])


def test_an_end_of_sequence_that_is_no_token_is_none(folder: Path) -> None:
    write(folder / "generation_config.json", eos_token_id=-1)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    model = errata.load(folder).model
    assert continuations(model, tokenizer, PROMPTS, 3) == continuations(
        tiny_model("llama"), tiny_tokenizer(), PROMPTS, 3
    )


@pytest.mark.parametrize("name", ["num_return_sequences", "compile_config", *OUTPUTS])
def test_a_merged_model_is_written_whatever_the_settings(name: str, folder: Path) -> None:
    file = "config.json" if name in OUTPUTS else "generation_config.json"
    write(folder / file, **{name: SETTINGS.get(name, name != "return_dict")})
    edited = errata.load(folder)
    patch: WeightPatch = errata.edit(
        edited, FACTS[0], "rome", blocks=(1,), second_moment=False,
        search={"steps": 1, "max_steps": 1}, contexts={"prefixes": ()},
    )  # fmt: skip
    edited.apply(patch)
    export_merged(edited, folder.parent / "merged")
    merged = errata.load(folder.parent / "merged")
    assert merged.generate(PROMPTS[0], 6) == edited.generate(PROMPTS[0], 6)


def test_a_model_of_ones_own_is_left_with_its_settings() -> None:
    edited = EditedModel(tiny_model("llama"), tiny_tokenizer(), "tiny")
    own = edited.model.generation_config
    own.update(num_beams=4, repetition_penalty=5.0)
    edited.generate(PROMPTS[0], 3)
    assert edited.model.generation_config is own and own.num_beams == 4
