"""Every verb meets hostile values for each of its flags with words: exit 0, 1 or 2."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from random import Random

import pytest

from errata.cli import main
from fuzz.flags import HOSTILE, SOUND, Ended, Flag, command_with, flags, no_model, run
from wrong_files import write_all

FLAGS = flags()
EACH = 1
"""Number of values per flag in the default suite; the slow test tries all of them."""
STOPPED = 130
FOUND = {
    "a seed of the noise": ["trace", "pico", "The {sea} is", "--noise-seed", "5000000000"],
    "a seed of the tuning": ["tune", "pico", "--data", "rows.jsonl", "--seed", "5000000000"],
    "a negative seed": ["tune", "pico", "--data", "rows.jsonl", "--seed", "-1"],
    "a file name with a zero": ["ppl", "pico", "--text", "a\0b"],
    "modules that are no text": ["tune", "pico", "--data", "rows.jsonl", "--modules", "\udcff"],
    "a model in a number": ["chat", "number.json", "-p", "x"],
    "nested prefixes": ["run", "nested.yaml"],
}
"""Commands that once ended with a traceback."""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    write_all(folder)
    row = {"instruction": "Say it.", "input": "", "output": "the correct answer is true"}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row | {'answer': 'true'})}\n" * 2)
    (folder / "recipe-sound.yaml").write_text(
        "model: pico\nedit: {dataset: one.jsonl, corpus: text.txt}\n"
    )
    nested = f"{{contexts: {{prefixes: {'[' * 1199 + ']' * 1199}}}}}"
    (folder / "nested.yaml").write_text(
        f"model: pico\nedit: {{dataset: one.jsonl, settings: {nested}}}\n"
    )
    (folder / "no-spaces.txt").write_text("thesea" * 400)
    return folder


@pytest.fixture
def here(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))


def in_words(ended: Ended) -> bool:
    return ended.code in (0, main.USER_ERROR, 2) and "Traceback" not in ended.err


def test_every_flag_of_every_verb_is_tried() -> None:
    verbs = {flag.verb for flag in FLAGS}
    assert verbs | {"env"} == set(SOUND)
    names = {flag.name for flag in FLAGS if flag.verb == "edit"}
    assert {"#0", "#1", "#2", "--steps", "--patch", "--requests", "--target-true"} <= names
    (edit,) = (each for each in main.app.registered_commands if each.callback.__name__ == "edit")
    assert len(names) > 0.6 * len(inspect.signature(edit.callback).parameters)


@pytest.mark.parametrize("verb", sorted({flag.verb for flag in FLAGS}))
@pytest.mark.usefixtures("here")
def test_hostile_values_are_met_with_words(verb: str) -> None:
    random = Random(verb)
    with no_model():
        for flag in (each for each in FLAGS if each.verb == verb):
            for value in random.sample(HOSTILE, EACH):
                ended = run(command_with(flag, value))
                assert in_words(ended), (flag, value[:80], ended.err[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS, ids=[f"{flag.verb} {flag.name}" for flag in FLAGS])
@pytest.mark.usefixtures("here")
def test_all_hostile_values_are_met_with_words(flag: Flag) -> None:
    with no_model():
        for value in HOSTILE:
            ended = run(command_with(flag, value))
            assert in_words(ended), (value[:80], ended.err[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS, ids=[f"{flag.verb} {flag.name}" for flag in FLAGS])
@pytest.mark.usefixtures("here")
def test_some_hostile_values_are_met_with_words_by_a_model(flag: Flag) -> None:
    """With a real model; a number that asks for endless work is stopped, and that is no finding."""
    for value in Random(str(flag)).sample(HOSTILE, 6):
        ended = run(command_with(flag, value), seconds=2)
        assert in_words(ended) or ended.code == STOPPED, (value[:80], ended.err[-2000:])


@pytest.mark.parametrize("what", FOUND)
@pytest.mark.usefixtures("here")
def test_old_findings_are_met_with_words(what: str) -> None:
    ended = run(FOUND[what])
    assert ended.code == main.USER_ERROR and ended.err.startswith("error: "), ended.err[-2000:]


@pytest.mark.usefixtures("here")
def test_a_text_without_spaces_has_no_word_perplexity(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ppl", "pico", "--text", "no-spaces.txt"]).code == 0
    ended = run(["ppl", "pico", "--text", "no-spaces.txt", "--json"])
    summary = json.loads(ended.out)["summary"]
    assert summary["word_perplexity"] is None
    assert summary["byte_perplexity"]["value"] > 1


@pytest.mark.usefixtures("here")
def test_a_traceback_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.cli.ls.presets", lambda: 1 / 0)
    assert not in_words(run(["ls", "presets"]))
