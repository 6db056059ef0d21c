"""Finding runs again: one process a folder, the latest by number, one file read per run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.experiments import run_folder as module
from errata.experiments.run_folder import finished_run, folders_within, run_folder

PARAMS = {"cases": [["The sea is in", "Pell"]] * 3, "level": 0.5}


def finished(results: Path, params: dict[str, Any] = PARAMS) -> Path:
    with run_folder(results, "eval", params) as (folder, _):
        (folder / "summary.json").write_text("{}")
    return folder


def test_a_run_that_another_process_finished_meanwhile_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path, "eval", PARAMS) as (first, _):
        raise KeyboardInterrupt
    real = module._lock

    def late(folder: Path) -> Any:
        (first / "summary.json").write_text("{}")  # it ends between our look and our lock
        return real(folder)

    monkeypatch.setattr(module, "_lock", late)
    with run_folder(tmp_path, "eval", PARAMS) as (second, resumed):
        assert second != first
        assert not resumed


def test_run_1000_is_later_than_run_999(tmp_path: Path) -> None:
    one = finished(tmp_path)
    for name in ("run_999", "run_1000"):
        one.parent.joinpath(name).mkdir()
        for file in one.iterdir():
            one.parent.joinpath(name, file.name).write_bytes(file.read_bytes())
    assert finished_run(tmp_path, "eval", PARAMS) == one.parent / "run_1000"
    names = [path.name for path in folders_within(tmp_path)]
    assert names[-3:] == ["run_000", "run_999", "run_1000"]


def test_params_of_other_runs_are_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        finished(tmp_path, {**PARAMS, "seed": seed})
    parsed, real = [], module.parse_json
    monkeypatch.setattr(module, "parse_json", lambda text: (parsed.append(text), real(text))[1])
    found = finished_run(tmp_path, "eval", {**PARAMS, "seed": 2})
    assert found is not None and found.name == "run_002"
    assert len(parsed) == 1


def test_folders_without_a_digest_are_still_found(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder / module.DIGEST).unlink()
    assert finished_run(tmp_path, "eval", PARAMS) == folder
    assert finished_run(tmp_path, "eval", {**PARAMS, "level": 1}) is None


def test_params_changed_by_hand_are_what_counts(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    changed = {**PARAMS, "level": 1.0, "command": None}
    (folder / "params.json").write_text(json.dumps(changed))
    assert finished_run(tmp_path, "eval", PARAMS) is None


def test_a_run_is_found_after_its_datasets_file_has_moved(tmp_path: Path) -> None:
    here, there = ({**PARAMS, "dataset": {"name": "demo", "path": path}} for path in ("a", "b"))
    folder = finished(tmp_path, here)
    assert finished_run(tmp_path, "eval", there) == folder
    (folder / module.DIGEST).unlink()
    assert finished_run(tmp_path, "eval", there) == folder
    other = {**there, "dataset": {"name": "other", "path": "a"}}
    assert finished_run(tmp_path, "eval", other) is None
