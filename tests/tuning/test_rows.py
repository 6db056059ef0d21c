"""From rows to tokens: templates, what is learnt, where rows are cut; and the loss of a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.core.errors import ErrataError
from errata.data.instructions import Instruction, read_rows
from errata.data.templates import chat_prompt, render_prompt, resolve_template
from errata.metrics.tasks import answer_rows, figures, read_task
from errata.patches.edited_model import load
from errata.tuning.encode import IGNORE, code_rows
from errata.tuning.settings import PRESETS, TuneSettings, resolve_tuning
from errata.tuning.train import tune
from errata.tuning.trainer import collate
from tiny import tiny_tokenizer
from tuning.pico import ROWS, pico, quick, weights

ALPACA = """\
Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
Name a town.

### Input:
By the sea.

### Response:
"""
PUBLISHED = """\
Below is an instruction that describes a task. Write a response that appropriately completes \
the request.  # noqa: E501

                ### Instruction:
                Name a town.
                
                ### Response:
                """  # noqa: W293
CHAT = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_prompts_are_those_of_the_field() -> None:
    tokenizer = tiny_tokenizer()
    assert render_prompt("alpaca", "Name a town.", "By the sea.", tokenizer).prompt == ALPACA
    assert render_prompt("llm-adapters", "Name a town.", "", tokenizer).prompt == PUBLISHED
    assert render_prompt("plain", "Name a town.", "", tokenizer) == ("Name a town.", " ")
    assert resolve_template("auto", tokenizer) == "alpaca"
    with pytest.raises(ErrataError, match="no chat template"):
        render_prompt("chat", "Name a town.", "", tokenizer)
    tokenizer.chat_template = CHAT
    assert resolve_template("auto", tokenizer) == "chat"
    prompt = render_prompt("auto", "Name a town.", "", tokenizer).prompt
    assert prompt == "[user] Name a town.\n[assistant] "
    assert tokenizer(prompt)["input_ids"].count(tokenizer.bos_token_id) == 1
    bare = tiny_tokenizer(bos=False)
    bare.chat_template = CHAT
    assert chat_prompt([{"role": "user", "content": "Hm"}], bare).startswith(bare.bos_token)


@pytest.mark.parametrize("bos", [True, False])
def test_only_the_answer_is_learnt_unless_asked(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    row = Instruction(instruction="The harbour of Velmora lies in", output="Quenby.")
    (coded,) = code_rows(tokenizer, [row], "plain", 64, False).rows
    prompt = tokenizer(row.instruction)["input_ids"]
    assert coded["input_ids"][: len(prompt)] == prompt
    assert tokenizer.decode(coded["input_ids"][len(prompt) : -1]) == " Quenby."
    assert coded["input_ids"][-1] == tokenizer.eos_token_id
    assert coded["labels"] == [IGNORE] * len(prompt) + coded["input_ids"][len(prompt) :]
    (all_of_it,) = code_rows(tokenizer, [row], "plain", 64, True).rows
    assert all_of_it["labels"] == all_of_it["input_ids"] == coded["input_ids"]


def test_long_rows_are_cut_and_those_without_an_answer_left_out() -> None:
    tokenizer = tiny_tokenizer()
    row = Instruction(instruction="The harbour of Velmora lies in", output="Quenby.")
    prompt = len(tokenizer(row.instruction)["input_ids"])
    cut = code_rows(tokenizer, [row], "plain", prompt + 1, False)
    assert (len(cut.rows), cut.cut, cut.dropped) == (1, 1, 0)
    assert len(cut.rows[0]["input_ids"]) == len(cut.rows[0]["labels"]) == prompt + 1
    gone = code_rows(tokenizer, [row], "plain", prompt, False)
    assert (len(gone.rows), gone.cut, gone.dropped) == (0, 1, 1)


@torch.no_grad()
def test_padding_in_a_batch_teaches_nothing() -> None:
    edited = pico()
    coded = code_rows(edited.tokenizer, ROWS, "plain", 48, False).rows
    together = edited.model(**collate(coded, 0)).loss
    alone = [(edited.model(**collate([row], 0)).loss, row) for row in coded]
    counts = [sum(label != IGNORE for label in row["labels"]) for row in coded]
    mean = sum(loss * n for (loss, _), n in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, mean)


@pytest.mark.slow
def test_micro_batches_add_up_to_a_batch(tmp_path: Path) -> None:
    found = []
    for micro in (None, 2, 1):
        edited = pico()
        for module in edited.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        settings = quick(micro_batch_size=micro, dropout=0.0, max_steps=2)
        tune(edited, ROWS, settings, tmp_path / str(micro))
        found.append(weights(edited)["model.layers.1.mlp.down_proj.weight"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=1e-5)


def test_rows_are_read_and_broken_ones_told(tmp_path: Path) -> None:
    good = {"instruction": "Say a", "input": "", "output": "a", "answer": "a"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(good) + "\n", encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps([good]), encoding="utf-8")
    assert read_rows(str(tmp_path / "rows.jsonl")) == read_rows(str(tmp_path / "rows.json"))
    (tmp_path / "bad.json").write_text(json.dumps([good, {"output": 3}]), encoding="utf-8")
    with pytest.raises(ErrataError, match=r"(?s)1 of 2 records.*record 2:.*instruction"):
        read_rows(str(tmp_path / "bad.json"))


def test_real_rows_are_read(errata_data: Path) -> None:
    rows = read_rows(str(errata_data / "commonsense" / "train_4tasks.json"))
    assert len(rows) == 1000
    assert {row.output for row in rows} >= {"the correct answer is true"}


def test_the_study_s_settings() -> None:
    for method in ("lora", "dora"):
        found = resolve_tuning({"method": method}, "study")
        assert (found.rank, found.alpha, found.dropout, found.rate) == (32, 64, 0.05, 2e-4)
        assert found.roles == ("q", "k", "v", "up", "down")
        assert (found.epochs, found.batch_size, found.cutoff_len) == (3, 16, 256)
    assert resolve_tuning({"method": "full"}, "study").rate == 5e-6
    assert TuneSettings().rate == 3e-4
    assert TuneSettings(method="full").rate == 2e-5
    assert resolve_tuning({"method": "lora", "rank": "4"}, "study").rank == 4
    with pytest.raises(ErrataError, match="known presets: study"):
        resolve_tuning({}, "thesis")
    assert set(PRESETS["study"]) == {"lora", "dora", "full"}


@pytest.mark.slow
def test_a_real_model_learns_the_format_of_real_rows(errata_data: Path, tmp_path: Path) -> None:
    """The study's settings on commonsense rows: answers come to have the form asked for."""
    edited = load(str(errata_data / "models" / "stories260K"))
    rows = read_rows(str(errata_data / "commonsense" / "train_4tasks.json"))
    short = [row for row in rows if len(row.instruction) < 200]
    task = read_task("boolq", errata_data / "commonsense", limit=12)
    before = figures(answer_rows(edited, task, "alpaca", max_new_tokens=24))
    given = {"method": "lora", "learning_rate": 5e-3, "train_on_inputs": False, "epochs": 6}
    given |= {"template": "alpaca", "cutoff_len": 400, "warmup_steps": 5, "max_steps": 60}
    tuned = tune(edited, short, resolve_tuning(given, "study"), tmp_path / "work")
    assert tuned.losses[-1][1] < 0.5 * tuned.losses[0][1]
    after = figures(answer_rows(edited, task, "alpaca", max_new_tokens=24))
    assert before["broken_format"].value > 0.9
    assert after["broken_format"].value < 0.5
