"""`--help` of every verb: without torch, in little time, with every setting on it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from errata.cli.main import app
from errata.cli.options import fields_of
from errata.core.files import write_safetensors
from errata.methods import METHODS
from errata.tracing.settings import TraceSettings
from tiny import FACTS

VERBS = [command.name or command.callback.__name__ for command in app.registered_commands]
HEAVY = ("torch", "transformers", "safetensors", "numpy.linalg", "datasets")
CODE = f"""
import sys
from errata.cli.main import main
sys.argv = ["errata", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
SECONDS = 2.5
DEFAULTS = {
    "kinds": "hidden,mlp,attn",
    "noise": "gaussian",
    "level": "3s",
    "replace": "no-replace",
    "samples": "10",
    "noise_seed": "1",
    "subject_last_only": "no-subject-last-only",
}
"""What `errata trace --help` says of each setting that has a value when none is given."""


def helped(*arguments: str) -> tuple[str, float]:
    """Return what `--help` prints, and the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", CODE, *arguments, "--help"]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done.stdout, used


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_loads_no_torch_and_is_quick(verb: str | None) -> None:
    shown, used = helped(*([verb] if verb else []))
    assert "loaded: []" in shown
    assert "Usage: errata" in shown.replace("-c", "errata")
    assert used < SECONDS
    if verb is None:
        assert all(f" {name} " in shown for name in VERBS)
    if verb == "edit":
        flags = {path[-1] for method in METHODS.values() for path, _ in fields_of(method)}
        assert {f"--{flag.replace('_', '-')}" for flag in flags} <= set(shown.split())


@pytest.mark.parametrize("what", ["patches", "stats", "methods", "presets", "datasets"])
def test_lists_load_no_torch(what: str, tmp_path: Path) -> None:
    """Patches and moments are listed from their headers."""
    patch = {
        "format": 1,
        "base": {"name": "pico"},
        "method": "rome",
        "requests": [FACTS[0].model_dump()],
    }
    identity = {"weight": "mlp", "weights": "0" * 64, "dtype": "float32"}
    write_safetensors(
        tmp_path / "ROME" / "run_000" / "patch.safetensors",
        {"w.R": torch.zeros(3, 5)},
        {"errata": json.dumps(patch)},
    )
    write_safetensors(
        tmp_path / "moments" / "0" / "m.safetensors",
        {"second_moment": torch.eye(2)},
        {"errata": json.dumps({"count": 7, "identity": identity})},
    )
    done = subprocess.run(
        [sys.executable, "-c", CODE, "ls", what, "--results", str(tmp_path), "--json"],
        env={**os.environ, "ERRATA_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, loaded = done.stdout.splitlines()
    assert "torch" not in loaded and "transformers" not in loaded
    rows = json.loads(found)[what]
    assert rows
    if what == "patches":
        assert (rows[0]["model"], rows[0]["method"], rows[0]["kB"]) == ("pico", "rome", 0.1)
    if what == "stats":
        assert (rows[0]["tokens"], rows[0]["base"]) == (7, "0" * 12)


def test_the_help_of_trace_lists_choices_and_defaults() -> None:
    shown = " ".join(helped("trace")[0].replace("│", " ").split())
    assert "--noise gaussian|uniform" in shown
    for path, field in fields_of(TraceSettings):
        flag = shown.split(f"--{path[-1].replace('_', '-')} ")[1]
        flag = flag.removeprefix("--no").split(" --")[0]
        if path[-1] in DEFAULTS:
            assert f"[default: {DEFAULTS[path[-1]]}]" in flag
        else:
            assert field.default is None and "[default" not in flag
    assert set(DEFAULTS) <= set(TraceSettings.model_fields)


def test_choices_are_listed_and_defaults_that_a_preset_may_change_are_not() -> None:
    shown = " ".join(helped("edit")[0].replace("│", " ").split())
    assert "--precision full|tf32|autocast" in shown
    assert "[default" not in shown.split("--steps ")[1].split(" --")[0]
