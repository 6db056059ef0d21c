"""A run killed with SIGKILL and resumed leaves the bytes of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from errata.statistics.store import Store

pytestmark = pytest.mark.real
PATIENCE = 300
"""Seconds after which a run that has written no patch has failed."""


def begin(name: str, dataset: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a run of two batches on top of each other in a folder of its own."""
    folder.mkdir(exist_ok=True)
    plan = ("--dataset", str(dataset), "--limit", "2", "--batch-size", "1", "--sequential")
    command = [sys.executable, "-m", "errata", "edit", name, *plan, "--dtype", "float32"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def test_a_killed_run_resumes_with_the_same_bytes(
    name: str, dataset: Path, store: Store, tmp_path: Path
) -> None:
    finish(begin(name, dataset, tmp_path / "whole"))
    killed = tmp_path / "killed"
    process = begin(name, dataset, killed)
    run = killed / "results" / "MEMIT" / "run_000"
    end = time.monotonic() + PATIENCE
    while not (run / "patch_0000.safetensors").exists() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "patch_0001.safetensors").exists() and not (run / "summary.json").exists()
    finish(begin(name, dataset, killed))
    assert contents(killed) == contents(tmp_path / "whole")
    assert "results/MEMIT/run_000/patch_0001.safetensors" in contents(killed)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
