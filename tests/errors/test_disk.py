"""No space on the disk: said in words, no torn file is left, nothing that was done is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.core import files
from errata.core.errors import ErrataError

QUICK = (
    *("--corpus", "text.txt", "--blocks", "1"),
    *("--steps", "2", "--max-steps", "2", "--prefix-lengths", "2"),
)
MANY = ("edit", "pico", "--requests", "facts.jsonl", "--batch-size", "1", *QUICK)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 28 kB, where this machine lets us make one."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=28k", "errata-test", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_a_full_disk_stops_a_run_in_words_and_the_run_goes_on_later(
    small: Path, shell: Any, tmp_path: Path
) -> None:
    results = ("--results", str(small))
    said = shell(*MANY, *results)
    assert said.code == 1
    assert "error: cannot write " in said.err
    assert "No space left on device" in said.err
    assert "\nhint: check the folder, its permissions and free space\n" in said.err
    assert not parts(small)
    done = sorted(small.rglob("patch_*.safetensors"))
    assert 1 <= len(done) < 4, "some edits were done, and not all"
    held = {path.name: path.read_bytes() for path in done}
    subprocess.run(["mount", "-o", "remount,size=2m", str(small)], check=True)
    said = shell(*MANY, *results)
    assert said.code == 0, said.err
    (run,) = small.glob("MEMIT/*")
    for name, data in held.items():
        assert (run / name).read_bytes() == data
    assert len(list(run.glob("patch_*.safetensors"))) == 4


@pytest.mark.parametrize("what", ["patch.safetensors", "summary.json"])
def test_a_disk_that_fills_up_leaves_no_torn_file(
    what: str, shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no small disk can be made: the kernel's answer, given when a file is to be finished."""
    sync = os.fsync

    def full(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name.startswith(f".{what}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    fact = ("edit", "pico", "The {Lantern Bridge} is in", "Quenby", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        said = shell(*fact, "--results", str(tmp_path / "results"))
    assert said.code == 1
    assert f"{what}: No space left on device" in said.err
    assert not parts(tmp_path)
    run = tmp_path / "results" / "MEMIT" / "run_000"
    assert not (run / what).exists()
    assert shell(*fact, "--results", str(tmp_path / "results")).code == 0
    assert (run / "summary.json").exists()


def test_tensors_on_a_full_disk_are_an_error_in_words(small: Path) -> None:
    import torch

    with pytest.raises(ErrataError, match="No space left on device"):
        files.write_safetensors(small / "x.safetensors", {"x": torch.ones(100_000)}, {})
    assert not list(small.iterdir())
