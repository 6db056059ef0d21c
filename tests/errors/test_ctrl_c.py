"""Ctrl-C at any moment: exit code 130, one line, no traceback, and a second run ends the same.

A real process gets a real SIGINT: when a file appears, or after a share of the processor time
that the whole command takes. `make`, editors and terminals send no other signal.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wrong_files import SENTENCES

EDIT = (
    *("edit", "pico", "--requests", "facts.jsonl", "--batch-size", "1", "--corpus", "text.txt"),
    *("--blocks", "1,2", "--steps", "20", "--max-steps", "20", "--stop-at", "0"),
    *("--prefix-lengths", "3"),
)
STATS = ("stats", "pico", "--corpus", "many.txt", "--blocks", "0,1,2,3", "--json")
STOPPED = "warning: stopped; everything saved before is intact\n"
TIMED = """
import os, signal, sys
seconds = float(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
signal.signal(signal.SIGVTALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
if seconds:
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
from errata.__main__ import main
try:
    main()
finally:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)  # what is left is Python's own end
"""


def place(folder: Path, name: str, tmp_path: Path) -> Path:
    """A folder of its own with the user's files in it, so that commands read alike."""
    here = tmp_path / name
    here.mkdir()
    for file in ("pico", "facts.jsonl", "text.txt"):
        (here / file).symlink_to(folder / file)
    (here / "many.txt").write_text("\n".join(SENTENCES * 150), encoding="utf-8")
    return here


def start(arguments: tuple[str, ...], here: Path, seconds: float = 0.0) -> subprocess.Popen[str]:
    environment = {**os.environ, "ERRATA_CACHE": str(here / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", TIMED, str(seconds), *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(here: Path) -> dict[str, Any]:
    """Every file of results and cache, by its bytes; times and the like are in none."""
    found = {}
    for path in sorted((*here.glob("results/**/*"), *here.glob("cache/**/*"))):
        assert not path.name.endswith(".part"), f"{path} was left half-written"
        if path.is_file():
            found[str(path.relative_to(here))] = path.read_bytes()
    return found


def finish(arguments: tuple[str, ...], here: Path) -> str:
    process = start(arguments, here)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_ctrl_c_between_two_edits_loses_nothing(
    folder: Path, tmp_path: Path, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (place(folder, name, tmp_path) for name in ("stopped", "whole"))
    process = start(EDIT, here)
    first = here / "results" / "MEMIT" / "run_000" / "patch_0000.safetensors"
    while not first.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", STOPPED)
    assert not (first.parent / "summary.json").exists(), "it was not stopped, but done"
    inode = first.stat().st_ino
    for place_ in (here, there):
        monkeypatch.chdir(place_)
        monkeypatch.setenv("ERRATA_CACHE", str(place_ / "cache"))
        assert shell(*EDIT).code == 0
    assert first.stat().st_ino == inode, "what was done was done again"
    assert left(here) == left(there)


def test_ctrl_c_while_loading_is_told_in_words(folder: Path, tmp_path: Path) -> None:
    process = start(EDIT, place(folder, "stopped", tmp_path), seconds=0.6)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err in ("", STOPPED), "before anything is printed there may be nothing to say"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [EDIT, STATS], ids=["edit", "stats"])
def test_ctrl_c_at_any_moment_loses_nothing(
    arguments: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    whole = place(folder, "whole", tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = finish(arguments, whole)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    runs = itertools.count()

    def was_stopped(moment: float) -> bool:
        here = place(folder, f"stopped-{next(runs)}", tmp_path)
        process = start(arguments, here, moment)
        out, err = process.communicate(timeout=300)
        if process.returncode:
            assert (process.returncode, out) == (130, ""), err
            assert err in ("", STOPPED)
            out = finish(arguments, here)
        assert out == said
        assert left(here) == left(whole), moment
        return process.returncode != 0

    for share in (0.2, 0.4, 0.55, 0.7, 0.8, 0.9):
        # The same work takes less time when the machine is less busy: a run that ended before its
        # moment came was not stopped, and an earlier moment is tried.
        moments = (share * seconds * 0.85**tries for tries in range(8))
        assert any(map(was_stopped, moments)), f"never stopped at {share} of {seconds:.1f} s"
