"""Files of strangers do no harm: errors in words, no code run, nothing written elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutations import spoilt
from fuzz.strangers import CORPUS, KINDS, Strangers

pytestmark = pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning:peft")
MANY = 2000
"""Files of each kind that the slow test spoils."""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Strangers:
    return Strangers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_sound_files_and_old_findings_do_no_harm(kind: str, user: Strangers) -> None:
    seeds = user.seeds(kind)
    assert seeds
    for data in seeds:
        assert user.meet(kind, data) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_files_do_no_harm(kind: str, user: Strangers) -> None:
    seeds = user.seeds(kind)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.randoms(use_true_random=False), st.integers(0, len(seeds) - 1))
    def meet(random: Random, which: int) -> None:
        data = spoilt(seeds[which], random)
        assert user.meet(kind, data) == "", data[:2000]

    meet()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_spoilt_files_do_no_harm(kind: str, user: Strangers) -> None:
    """The same files in every run; SPOILT_FROM=7 spoils others, `make fuzz` goes on looking."""
    seeds, random = user.seeds(kind), Random(os.environ.get("SPOILT_FROM", "0") + kind)
    for number in range(MANY):
        data = spoilt(seeds[random.randrange(len(seeds))], random)
        assert user.meet(kind, data) == "", f"file {number}: {data[:4000]!r}"


def test_harm_would_be_found(user: Strangers, monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(user: Strangers, path: Path) -> None:
        (user.folder.parent / "owned").write_text("x")

    def crash(user: Strangers, path: Path) -> None:
        raise KeyError("errata")

    def start(user: Strangers, path: Path) -> None:
        os.system("true")

    for use, words in ((harm, "open "), (crash, "KeyError"), (start, "os.system")):
        monkeypatch.setitem(KINDS, "corpus", ("c.jsonl", use))
        assert words in user.meet("corpus", b"{}")
    assert not [path for path in CORPUS.rglob("*") if path.is_dir() and path.name not in KINDS]
