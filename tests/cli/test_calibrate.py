"""`errata calibrate` on the embedded model: from facts to a preset that edits use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.core.places import presets_folder
from fuzz.flags import run

FEW = ("calibrate", "demo", "--limit", "3", "--held-out", "2", "--trials", "4")
QUICK = ("--steps", "3", "--max-steps", "3", "--prefix-lengths", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_PRESETS", str(tmp_path / "presets"))
    return tmp_path


@pytest.mark.slow
def test_a_preset_from_facts_to_an_edit(here: Path) -> None:
    words = [*FEW, *QUICK, "--out", "mine.json", "--json"]
    ended = run(words, seconds=200)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["model"] == "demo" and found["method"] == "memit"
    assert len(found["trials"]) == 4 and found["chosen"] in found["front"]
    assert found["facts"]["dropped"] == [0, 0] and found["held_out"]["before"]
    assert found["settings"]["search"]["steps"] == 3, "a flag fixes a setting"
    assert "about " in ended.err and "held-out facts" in ended.err
    assert (here / "mine.json").read_text() == Path(found["preset"]).read_text()
    assert Path(found["preset"]).parent == presets_folder()
    assert (Path(found["run"]) / "trade_off.png").exists()
    listed = json.loads(run(["ls", "presets", "--json"]).out)["presets"]
    (own,) = (row for row in listed if row["source"].startswith("own: "))
    assert own["model"] == "demo" and "2 held-out facts of demo" in own["evidence"]
    fact = ("The {Eiffel Tower} is in", "Rome")
    edited = run(["edit", "demo", *fact], seconds=60)
    assert f"calibrated by errata 0.1.0 ({found['preset']})" in edited.out
    (here / "presets").rename(here / "away")
    assert "calibrated" not in run(["edit", "demo", *fact], seconds=60).out
    given = run(["edit", "demo", *fact, "--preset", "mine.json"], seconds=60)
    assert "calibrated by errata 0.1.0 (mine.json)" in given.out
    again = run(words, seconds=200)
    assert json.loads(again.out)["trials"] == found["trials"], "the same facts, the same trials"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rome", "alphaedit"])
def test_other_methods(method: str) -> None:
    ended = run([*FEW, *QUICK, "--method", method], seconds=200)
    assert ended.code == 0, ended.err
    assert f"errata calibrate demo, {method}" in ended.out and "Next: errata edit" in ended.out


def test_a_dry_run_says_the_cost_and_saves_nothing(here: Path) -> None:
    ended = run([*FEW, *QUICK, "--dry-run", "--json"], seconds=60)
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    whats = [cost["what"] for cost in plan["costs"]]
    assert {"sweep over blocks", "trials", "held-out facts", "in all"} <= set(whats)
    assert all(cost["seconds"] > 0 for cost in plan["costs"])
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("gpt2",), "name either a dataset or a file of facts"),
        (("demo", "--facts", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
        (("demo", "--dataset", "demo", "--facts", "x.jsonl"), "name either"),
        (("demo", "--method", "rome", "--batch-size", "3"), "batches of at most 1"),
        (("demo", "--trials", "0"), "--trials"),
        (("demo", "--method", "rome", "--ridge", "3"), "no setting --ridge"),
        (("demo", "--out", "."), ". is a folder"),
        (("demo", "--text", "nowhere.txt"), "cannot read the corpus nowhere.txt"),
    ],
)
def test_what_cannot_be_calibrated(words: tuple[str, ...], error: str) -> None:
    ended = run(["calibrate", *words])
    assert ended.code in (1, 2) and error in ended.err


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "optuna" else real(name))
    ended = run(list(FEW))
    assert ended.code == 1 and "errata-lm[calibrate]" in ended.err
