"""`errata stats`: what it would cost, what it says of an estimate, and being split over processes.

The slow ones kill real processes, and run two at once, alone and under torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app, main
from errata.statistics.second_moment import SecondMoment
from laws.bench import bits, closeness
from tiny import SENTENCES, tiny_model, tiny_tokenizer

SLOWED = """
import sys, time
from errata.statistics import accumulate, store
from functools import partial
from errata.cli.main import main
real = accumulate.add_batch
def slow(*args):
    time.sleep({pause})
    real(*args)
accumulate.add_batch = slow
accumulate.BUDGET = 64
store.Checkpoint = partial(store.Checkpoint, every=0.0)
sys.argv = ["errata", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model and a corpus."""
    folder = tmp_path_factory.mktemp("user")
    tiny_model("gpt2").save_pretrained(folder / "pico")
    tiny_tokenizer().save_pretrained(folder / "pico")
    (folder / "text.txt").write_text("\n".join(SENTENCES * 6), encoding="utf-8")
    return folder


def stats(*more: str) -> list[str]:
    return ["stats", "pico", "--corpus", "text.txt", "--blocks", "1,2", *more]


@pytest.fixture
def said(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Run `errata` in this process; give what it printed on stdout."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["errata", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        found = capsys.readouterr()
        assert not end.value.code, found.err
        return found.out

    return run


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_corpus_too_small_to_edit_with_is_told_when_it_is_measured(
    more: tuple[str, ...], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))

    def told(tokens: int) -> tuple[str, str]:
        result = CliRunner().invoke(app, stats("--tokens", str(tokens), *more))
        assert result.exit_code == 0, result.output
        return " ".join(result.stderr.split()), result.stdout

    err, out = told(30)
    assert "warning: the second moment of 30 tokens is singular: its rank is 30 of 56" in err
    assert "need varied text of more than 56 tokens, AlphaEdit of at least 112" in err
    assert err.count("warning") == 1
    assert "--method memit" not in out
    assert more or "Next: errata stats pico --corpus " in out
    err, out = told(100)
    assert "warning: 100 tokens are too few for AlphaEdit, which needs at least 112" in err
    assert more or "--method memit" in out
    err, out = told(112)
    assert "warning" not in err


def test_a_dry_run_says_what_it_costs_and_writes_nothing(said: Any, tmp_path: Path) -> None:
    out = said(*stats("--dry-run", "--tokens", "500"))
    assert "* blocks 1,2, 500 tokens of text.txt, one pass\n" in out
    assert all(word in out for word in ("TFLOP, about ", "memory ", "disk "))
    found = json.loads(said(*stats("--dry-run", "--json")))
    assert found["blocks"] == [1, 2]
    assert 0 < found["seconds"] < 60 and found["flops"] > 0
    assert found["disk"] == 2 * 4 * 56**2
    assert not (tmp_path / "cache").exists()
    measured = json.loads(said(*stats("--json")))
    assert {row["tokens"] for row in measured["moments"]} == {found["tokens"]}
    assert "all of these blocks are stored" in said(*stats("--dry-run"))
    assert json.loads(said(*stats("--dry-run", "--json")))["blocks"] == []


def test_an_estimate_says_how_settled_it_is(said: Any) -> None:
    out = said(*stats("--tokens", "500"))
    assert "held-out keys changed by" in out and "% between half and all of the tokens" in out
    (row, _) = json.loads(said(*stats("--tokens", "500", "--json")))["moments"]
    assert 0 < row["moved"] < 2
    assert "moved" not in said(*stats())


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "ERRATA_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def slowed(folder: Path, cache: Path, pause: float, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOWED.format(pause=pause), *stats(*more)],
        cwd=folder,
        env=environment(cache),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def moments(cache: Path) -> dict[str, SecondMoment]:
    paths = sorted((cache / "moments").glob("*/*.safetensors"))
    return {path.name: SecondMoment.load(path) for path in paths}


def left(cache: Path) -> list[str]:
    return [p.suffix for p in (cache / "moments").glob("*/.*")]


@pytest.mark.slow
def test_a_process_that_is_killed_is_resumed_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    whole = slowed(folder, tmp_path / "whole", 0.0)
    assert whole.wait(300) == 0, whole.communicate()
    killed = slowed(folder, tmp_path / "killed", 0.3)
    began = time.monotonic()
    while ".partial" not in left(tmp_path / "killed"):
        assert killed.poll() is None and time.monotonic() - began < 300
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not moments(tmp_path / "killed")
    again = slowed(folder, tmp_path / "killed", 0.0)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0 and "resuming an interrupted measurement" in err
    expected, found = moments(tmp_path / "whole"), moments(tmp_path / "killed")
    assert list(found) == list(expected) and len(found) == 2
    for name, moment in found.items():
        assert bits(moment.matrix) == bits(expected[name].matrix)
    assert left(tmp_path / "killed") == []


@pytest.mark.slow
def test_two_processes_measure_it_once(folder: Path, tmp_path: Path) -> None:
    first, second = (slowed(folder, tmp_path, 0.3, "--json") for _ in range(2))
    outs = [process.communicate(timeout=300) for process in (first, second)]
    assert first.returncode == second.returncode == 0, outs
    assert json.loads(outs[0][0]) == json.loads(outs[1][0])
    waited = [err for _, err in outs if "waiting for it" in err]
    assert len(waited) == 1, outs
    assert len(moments(tmp_path)) == 2 and left(tmp_path) == []


@pytest.mark.slow
def test_a_lock_is_free_once_its_holder_is_dead(folder: Path, tmp_path: Path) -> None:
    holder = slowed(folder, tmp_path, 1.0)
    began = time.monotonic()
    while ".lock" not in left(tmp_path):
        assert holder.poll() is None and time.monotonic() - began < 300
        time.sleep(0.05)
    waiting = slowed(folder, tmp_path, 0.0)
    assert waiting.stderr is not None
    assert "waiting for it" in waiting.stderr.readline()
    holder.kill()
    holder.communicate()
    waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert len(moments(tmp_path)) == 2 and left(tmp_path) == []


@pytest.mark.slow
def test_torchrun_splits_the_text_and_sums_to_one_process(folder: Path, tmp_path: Path) -> None:
    def run(cache: str, *launcher: str) -> str:
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "errata", *stats("--tokens", "900", "--json")],
            cwd=folder,
            env=environment(tmp_path / cache),
            text=True,
            capture_output=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    split, alone = json.loads(run("split", *torchrun)), json.loads(run("alone"))
    assert [row["tokens"] for row in split["moments"]] == [900, 900]
    for ours, theirs in zip(split["moments"], alone["moments"], strict=True):
        assert ours["moved"] == pytest.approx(theirs["moved"], rel=1e-3)
    found, expected = moments(tmp_path / "split"), moments(tmp_path / "alone")
    assert list(found) == list(expected) and len(found) == 2
    for name, moment in found.items():
        assert closeness(moment.matrix, expected[name].matrix) < 1e-7  # stored in float32
    assert left(tmp_path / "split") == []
