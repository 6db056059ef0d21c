"""A dataset is fetched once, checked every time, and its absence explained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import ErrataError
from errata.data import datasets
from errata.data import download as fetching
from errata.data.datasets import DATASETS, load_cases
from errata.data.download import fetch
from errata.data.formats.known_facts import KNOWN

FACT = {"subject": "Pell", "attribute": "Marrow", "prompt": "Pell is the capital of"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A public home: a file that has an address."""
    path = tmp_path / "home" / "facts.json"
    path.parent.mkdir()
    path.write_text(json.dumps([FACT]), encoding="utf-8")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_is_fetched_once(home: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = fetch(home.as_uri(), cache)
    assert kept.read_bytes() == home.read_bytes()
    assert sorted(path.name for path in cache.iterdir()) == ["facts.json", "facts.json.sha256"]
    home.unlink()
    assert fetch(home.as_uri(), cache) == kept


@pytest.mark.parametrize("known", [True, False])
def test_a_kept_file_that_changed_is_not_read(home: Path, tmp_path: Path, known: bool) -> None:
    digest = sha256(home) if known else None
    kept = fetch(home.as_uri(), tmp_path / "cache", digest)
    kept.write_text("[]", encoding="utf-8")
    with pytest.raises(ErrataError, match="is not the published file") as raised:
        fetch(home.as_uri(), tmp_path / "cache", digest)
    assert "remove it" in raised.value.hints[0]


def test_another_file_than_the_published_one_is_not_kept(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="is not the published file"):
        fetch(home.as_uri(), tmp_path / "cache", "0" * 64)
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_that_was_put_there_by_hand_is_checked_from_then_on(
    home: Path, tmp_path: Path
) -> None:
    fetch(home.as_uri(), home.parent)
    home.write_text("[]", encoding="utf-8")
    with pytest.raises(ErrataError, match="is not the published file"):
        fetch(home.as_uri(), home.parent)


@pytest.mark.parametrize("what", ["refused", "cut short", "timed out"])
def test_a_home_out_of_reach_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    class Answer:
        def __init__(self) -> None:
            self.headers, self.parts = {"Content-Length": "100"}, [b"half"]

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def read(self, _: int) -> bytes:
            if what == "timed out":
                raise TimeoutError("no answer")
            return self.parts.pop() if self.parts else b""

    def call(*_: Any, **__: Any) -> Answer:
        if what == "refused":
            raise fetching.URLError("Name or service not known")
        return Answer()

    monkeypatch.setattr(fetching, "urlopen", call)
    with pytest.raises(ErrataError, match="cannot download https://") as raised:
        load_cases("multi_counterfact", cache=tmp_path)
    assert "give its path" in raised.value.hints[0]
    assert str(tmp_path / "multi_counterfact.json") in raised.value.hints[0]
    assert not list(tmp_path.iterdir())


def test_names_lead_to_their_file(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    dataset = DATASETS["known"]._replace(source=home.as_uri(), format=KNOWN)
    monkeypatch.setattr(datasets, "DATASETS", {**DATASETS, "far-away": dataset})
    loaded = load_cases("Far_Away", cache=tmp_path / "cache")
    assert [case.request.target for case in loaded.cases] == ["Marrow"]
    assert loaded.path == tmp_path / "cache" / "facts.json"
    with pytest.raises(ErrataError, match="there is no cache folder"):
        load_cases("far-away")


def test_every_dataset_has_a_file_or_an_address() -> None:
    for name, dataset in DATASETS.items():
        assert name == name.lower()
        assert dataset.source.startswith("https://") or Path(dataset.source).is_absolute()
        assert dataset.sha256 is None or len(dataset.sha256) == 64
