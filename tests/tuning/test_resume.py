"""A tuning that is stopped and started again ends, bit for bit, like one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from errata.data.instructions import read_rows
from errata.experiments.tuning_run import run_tuning
from errata.patches.edited_model import load
from errata.tuning.settings import resolve_tuning
from errata.tuning.train import tune
from errata.tuning.trainer import WHOLE, last_whole
from tuning.pico import ROWS, pico, pico_patch, quick, weights


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "given",
    [
        {"method": "lora", "dropout": 0.3, "shift_penalty": 0.1},
        pytest.param({"method": "dora", "micro_batch_size": 2}, marks=pytest.mark.slow),
        pytest.param({"method": "full", "project": True}, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_tuning_goes_on_exactly(given: dict[str, object], tmp_path: Path) -> None:
    settings = quick(max_steps=9, save_every=2, validation=2, **given)

    def run(stop_at: int | None, work: str) -> tuple[dict[str, torch.Tensor], object]:
        def progress(done: int, total: int) -> None:
            if done == stop_at:
                raise Stopped

        edited = pico()
        edited.apply(pico_patch(edited))
        tuned = tune(edited, ROWS, settings, tmp_path / work, progress=progress)
        return weights(edited), tuned

    whole, told = run(None, "whole")
    torch.manual_seed(99)
    for stop_at in (5, 8):
        with pytest.raises(Stopped):
            run(stop_at, "stopped")
    torn = tmp_path / "stopped" / "checkpoint-8"  # as a writer leaves it that is killed
    shutil.copytree(tmp_path / "stopped" / "checkpoint-6", torn)
    (torn / "optimizer.pt").write_bytes(b"")
    (torn / WHOLE).unlink()
    assert str(last_whole(tmp_path / "stopped")).endswith("checkpoint-6")
    assert not torn.exists()
    resumed, again = run(None, "stopped")
    assert again == told
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_the_seed_decides(tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate((0, 0, 1)):
        edited = pico()
        tune(edited, ROWS, quick(seed=seed), tmp_path / str(run))
        found.append(edited.model.model.layers[0].mlp.down_proj.weight.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_command_ends_like_an_uninterrupted_one(method: str, tmp_path: Path) -> None:
    """kill -9 in the midst of the demo's tuning, then the same command again."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"instruction": "Number {i} is", "output": "{i * 7}."}}\n' for i in range(64)),
        encoding="utf-8",
    )
    code = "from errata.cli.main import main; main()"
    arguments = ["tune", "demo", "--data", str(rows), "--method", method, "--max-steps", "60"]
    arguments += ["--save-every", "5", "--batch-size", "4"]

    def command(results: str) -> list[str]:
        return [sys.executable, "-c", code, *arguments, "--results", str(tmp_path / results)]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command("killed"), **quiet)
    work = tmp_path / "killed" / "tune" / "run_000" / "work"
    limit = time.monotonic() + 240
    while not list(work.glob(f"checkpoint-*/{WHOLE}")) and time.monotonic() < limit:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(work.glob("checkpoint-*")), "it was killed too late to tell anything"
    subprocess.run(command("killed"), check=True, **quiet)
    run = tmp_path / "killed" / "tune" / "run_000"
    assert sorted(path.name for path in run.iterdir()) == sorted(
        [".params.sha256", "params.json", "summary.json", "report.md", "loss.json", "loss.png",
         "adapter" if method == "lora" else "checkpoint"]
    )  # fmt: skip
    edited = load("demo")
    given = {"method": method, "max_steps": 60, "save_every": 5, "batch_size": 4}
    run_tuning(
        edited,
        read_rows(str(rows)),
        resolve_tuning(given, "demo"),
        tmp_path / "whole",
        source=str(rows),
    )
    for kept in ("loss.json",):
        ours = (tmp_path / "whole" / "tune" / "run_000" / kept).read_text("utf-8")
        assert (run / kept).read_text("utf-8") == ours
    resumed = load("demo", adapter=run)
    for one, other in zip(edited.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
