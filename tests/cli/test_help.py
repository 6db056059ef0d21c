"""`--help` of every verb: without torch, in little time, with every setting on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
HELPS = f"""
import io, json, sys, time
from contextlib import redirect_stdout
from errata.cli.main import main
first = 0.0
for verb in [[], *([name] for name in sys.argv[1:])]:
    sys.argv = ["errata", *verb, "--help"]
    shown, began = io.StringIO(), time.process_time() if first else 0.0
    with redirect_stdout(shown):
        try:
            main()
        except SystemExit as end:
            assert end.code in (0, None), end.code
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([shown.getvalue(), loaded, first + time.process_time() - began]))
    first = first or time.process_time()  # imports and the first help count for every verb
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


class Help(NamedTuple):
    shown: str
    loaded: list[str]
    """Heavy modules that are loaded after it."""
    seconds: float
    """Processor time of a process that shows nothing else, at most."""


@pytest.fixture(scope="module")
def helps() -> dict[str, Help]:
    """What `--help` prints, of every verb and, as "", of the whole, one after the other."""
    command = [sys.executable, "-c", HELPS, *VERBS]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = (Help(*json.loads(line)) for line in done.stdout.splitlines())
    return dict(zip(["", *VERBS], found, strict=True))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_no_torch_and_is_quick(verb: str, helps: dict[str, Help]) -> None:
    shown, loaded, seconds = helps[verb]
    assert loaded == []
    assert f"Usage: errata {verb}" in shown
    assert seconds < SECONDS
    if not verb:
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


def test_the_help_of_trace_lists_choices_and_defaults(helps: dict[str, Help]) -> None:
    shown = " ".join(helps["trace"].shown.replace("│", " ").split())
    assert "--noise gaussian|uniform" in shown
    for path, field in fields_of(TraceSettings):
        flag = shown.split(f"--{path[-1].replace('_', '-')} ")[1]
        flag = flag.removeprefix("--no").split(" --")[0]
        if path[-1] in DEFAULTS:
            assert f"[default: {DEFAULTS[path[-1]]}]" in flag
        else:
            assert field.default is None and "[default" not in flag
    assert set(DEFAULTS) <= set(TraceSettings.model_fields)


def test_choices_are_listed_and_defaults_that_a_preset_may_change_are_not(
    helps: dict[str, Help],
) -> None:
    shown = " ".join(helps["edit"].shown.replace("│", " ").split())
    assert "--precision full|tf32|autocast" in shown
    assert "[default" not in shown.split("--steps ")[1].split(" --")[0]
