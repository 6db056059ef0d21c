"""Every patch that the demo leaves can be asked, scored, exported and loaded again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.patches.weight_patch import WeightPatch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "ERRATA_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "errata.cli.tour"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def told(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def answers(model: str | Path, prompts: list[str], *arguments: str | Path) -> list[str]:
    asked = [part for prompt in prompts for part in ("-p", prompt)]
    rows = told("chat", model, *asked, *arguments, "--max-new-tokens", "8")["answers"]
    return [row["after"] if "after" in row else row["answer"] for row in rows]


def test_every_patch_of_the_demo_is_of_use(place: Path) -> None:
    paths = sorted((place / "results").glob("*/run_*/patch*.safetensors"))
    assert {path.parts[-3] for path in paths} == {"ROME", "MEMIT", "AlphaEdit"}
    assert len(paths) >= 6
    right, asked = 0, 0
    for number, path in enumerate(paths):
        requests = WeightPatch.load(path).provenance.requests[:3]
        prompts = [request.text for request in requests]
        patched = answers("demo", prompts, "--patch", path)
        said = [
            text.strip().startswith(r.target) for r, text in zip(requests, patched, strict=True)
        ]
        right, asked = right + sum(said), asked + len(said)
        summary = told("eval", "demo", "--patch", path, "--dataset", "demo", "--limit", "3")
        assert set(summary["summary"]["before"]["efficacy"]) == {"value", "low", "high", "n"}
        lora, merged = (place / f"{kind}_{number}" for kind in ("lora", "merged"))
        told("export", "demo", "--patch", path, "--to", "lora", lora)
        told("export", "demo", "--patch", path, "--to", "merged", merged, "--dtype", "float32")
        assert answers("demo", prompts, "--adapter", lora) == patched
        assert answers(merged, prompts) == patched
    assert right >= 0.95 * asked
