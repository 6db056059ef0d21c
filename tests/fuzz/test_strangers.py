"""Files of strangers do no harm: errors in words, no code run, nothing written elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutations import spoilt
from fuzz.strangers import CORPUS, KINDS, Strangers

pytestmark = pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning:peft")
SECONDS = 60.0
"""How long the slow test spoils files, all kinds together."""


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
def test_a_minute_of_spoilt_files_does_no_harm(user: Strangers) -> None:
    start = int.from_bytes(os.urandom(4))
    for number, kind in enumerate(KINDS):
        seeds, random = user.seeds(kind), Random(start)
        until = time.monotonic() + SECONDS / len(KINDS)
        while time.monotonic() < until:
            data = spoilt(seeds[random.randrange(len(seeds))], random)
            found = user.meet(kind, data)
            assert found == "", f"seed {start}, kind {number}: {data[:4000]!r}"


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
