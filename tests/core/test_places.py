"""Programs and the command line find the same things, and are told of them in their own words."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.cli import console
from errata.core import places
from errata.core.errors import ErrataError, Hint, command_hints
from laws.bench import edited_model
from tiny import FACTS, SENTENCES

QUICK: dict[str, Any] = {
    "blocks": (1,),
    "search": {"steps": 1, "max_steps": 1},
    "contexts": {"prefix_lengths": [2]},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    return tmp_path


def test_a_program_finds_what_is_stored_in_the_default_store(cache: Path) -> None:
    from errata.data.corpus import Corpus
    from errata.statistics.store import default_store

    edited = edited_model("llama")
    with pytest.raises(ErrataError, match="needs second moments of block 1"):
        errata.edit(edited, FACTS[0], "memit", **QUICK)
    default_store().get(edited, Corpus("text", SENTENCES * 3), [1])
    patch = errata.edit(edited, FACTS[0], "memit", **QUICK)
    assert patch.provenance.moments
    assert list((cache / "moments").rglob("*.safetensors"))
    elsewhere = errata.Store(cache / "elsewhere")
    with pytest.raises(ErrataError, match="needs second moments of block 1"):
        errata.edit(edited, FACTS[0], "memit", store=elsewhere, **QUICK)


def test_the_places_follow_the_environment_when_they_are_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.moments_folder() == cache / "moments"
    assert places.datasets_folder() == cache / "datasets"
    monkeypatch.delenv("ERRATA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert places.cache_folder() == Path("/elsewhere/errata")


def test_hints_are_in_the_words_of_the_place_where_they_are_read(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ErrataError) as caught:
        errata.edit(edited_model("llama"), FACTS[0], "memit", **QUICK)
    assert 'hint: or make a quick estimate now: errata.edit(…, corpus="FILE.txt")' in str(
        caught.value
    )
    assert "to this command" not in str(caught.value)
    console.error(caught.value)
    shown = capsys.readouterr().err
    assert "hint: or make a quick estimate now: add --corpus FILE.txt to this command" in shown
    assert "errata.edit(" not in shown


def test_a_hint_is_text_that_can_be_copied() -> None:
    hint = Hint("allow_base=True", "--allow-base")
    for same in (hint, copy.deepcopy(hint), pickle.loads(pickle.dumps(hint))):
        assert same == "allow_base=True" and same.command == "--allow-base"
    again = ErrataError("message", *ErrataError("message", hint, "plain").hints)
    assert command_hints(again) == ["--allow-base", "plain"]
