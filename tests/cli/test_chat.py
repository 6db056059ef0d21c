"""`errata chat` with a tuned model: base, edited and tuned side by side; and a talk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.experiments.conversation import Speaker, speakers_of
from errata.experiments.tuning_run import run_tuning
from errata.patches.edited_model import load
from tiny import SENTENCES
from tuning.pico import ROWS, pico, pico_on_disk, pico_patch, quick


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_three_models_side_by_side(method: str, tmp_path: Path) -> None:
    edited = pico_on_disk(tmp_path / "model")
    edited.apply(pico_patch(edited))
    settings = quick(method=method, max_steps=6, learning_rate=0.05)
    _, run = run_tuning(edited, ROWS, settings, tmp_path)
    prompts = [text[:20] for text in SENTENCES[:4]]
    arguments = ["chat", str(tmp_path / "model"), "--adapter", str(run), "--json"]
    arguments += [part for prompt in prompts for part in ("-p", prompt)]
    found = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "5"], catch_exceptions=False)
    rows = json.loads(found.stdout)["answers"]
    base = load(str(tmp_path / "model"))
    both = load(str(tmp_path / "model"), patches=[pico_patch(base)])
    for row, prompt in zip(rows, prompts, strict=True):
        assert row == {
            "prompt": prompt,
            "base": base.generate(prompt, 5),
            "edited": both.generate(prompt, 5),
            "tuned": edited.generate(prompt, 5),
        }
    assert any(len({row["base"], row["edited"], row["tuned"]}) == 3 for row in rows)


def test_a_checkpoint_from_another_base_speaks_alone(tmp_path: Path) -> None:
    edited = pico_on_disk(tmp_path / "model")
    edited.apply(pico_patch(edited))
    _, run = run_tuning(edited, ROWS, quick(method="full"), tmp_path)
    again = load(str(tmp_path / "model"), adapter=run)
    again.apply(pico_patch(again))
    _, second = run_tuning(again, ROWS, quick(method="full"), tmp_path)
    arguments = ["chat", str(tmp_path / "model"), "--adapter", str(second), "-p", SENTENCES[0][:20]]
    found = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert list(json.loads(found.stdout)["answers"][0]) == ["prompt", "answer"]
    assert "another model" in found.stderr


def test_a_talk_holds_what_each_model_said_itself() -> None:
    speaker = Speaker("answer", pico())
    first = speaker.reply("Where is Velmora?", 4)
    speaker.reply("And Tarn?", 4)
    assert [turn["role"] for turn in speaker.turns] == ["user", "assistant"] * 2
    assert speaker.turns[1]["content"] == first.strip()
    model = pico()
    told = f"User: Where is Velmora?\nAssistant: {first.strip()}\nUser: And Tarn?\nAssistant:"
    expected = model.generate(told, 4).split("\nUser:")[0]
    assert speaker.turns[3]["content"] == expected.strip()


def test_who_speaks() -> None:
    edited, below = pico(), pico()
    assert [each.name for each in speakers_of(edited)] == ["answer"]
    edited.apply(pico_patch(edited))
    assert [each.name for each in speakers_of(edited)] == ["before", "after"]
    below.apply(pico_patch(below))
    names = ["base", "edited", "tuned", "edited again"]
    assert [each.name for each in speakers_of(edited, below)] == names
