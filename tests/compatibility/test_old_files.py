"""What version 3ea01b0 left on disk is read by the present one, and means what it meant.

`3ea01b0/` is a user's working folder as that version wrote it, `make.py` tells how, and
`3ea01b0/expected` holds what it said then. Everything is asked through the command line and the
names that `errata` exports, so that code may move as long as files and commands stay what they
are. Numbers may differ in their last digits, as other processors round in another order.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import errata
from compatibility.make import FACT, TARGET, flags, key_paths
from errata.__main__ import main
from errata.models.identity import same_record

OLD = Path(__file__).resolve().parent / "3ea01b0"
SAID = json.loads((OLD / "expected" / "said.json").read_text("utf-8"))
KEYS = json.loads((OLD / "expected" / "keys.json").read_text("utf-8"))
PATCHES = json.loads((OLD / "expected" / "patches.json").read_text("utf-8"))
STOPPED = Path("stopped/ROME/run_000")
WHERE = ("path", "file")
"""Keys of values that tell where errata is installed."""
LONG = ("survival --dry-run", "run --dry-run", "run --dry-run, the example")
"""Calls that take more than a few seconds."""

Call = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the working folder, which is the present one, with its own cache."""
    copy = tmp_path / "user"
    shutil.copytree(OLD, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("ERRATA_CACHE", "cache")
    return copy


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `errata` in this process; give what it printed on stdout."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["errata", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def demo() -> Any:
    return errata.load("demo", device="cpu")


def told(run: Call, *arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def expected(name: str) -> Any:
    return json.loads((OLD / "expected" / f"{name}.json").read_text("utf-8"))


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Yield where new JSON lacks or changes something of the old; what is new in it is allowed."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name, value in old.items():
            if name not in new:
                yield f"{at}.{name} is gone"
            elif name not in WHERE:
                yield from differences(value, new[name], f"{at}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{at}[{index}]")
    elif isinstance(old, float) and isinstance(new, int | float):
        if not math.isclose(old, new, rel_tol=1e-3, abs_tol=1e-4):
            yield f"{at}: {old} became {new}"
    elif old != new:
        yield f"{at}: {old!r} became {new!r}"


def files(folder: Path) -> dict[Path, bytes]:
    """Return what a folder holds; empty lock files, which come and go, left out."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix}


def weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.model.named_parameters()}


def same_bits(model: Any, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def stored_delta(path: Path) -> dict[str, Tensor]:
    """Read Δ = R A of every weight from a patch file, without errata."""
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
    names = {name.rpartition(".")[0] for name in held}
    return {name: held[f"{name}.R"] @ held[f"{name}.A"] for name in names}


def closeness(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_every_name_is_still_exported() -> None:
    assert set(expected("names")["errata"]) <= set(errata.__all__)
    for name in expected("names")["errata"]:
        assert getattr(errata, name) is not None


def test_every_method_family_preset_and_dataset_is_still_known(run: Call) -> None:
    for what in ("methods", "families", "presets", "datasets"):
        rows = told(run, "ls", what)[what]
        assert set(expected("names")[what]) <= {next(iter(row.values())) for row in rows}, what
    assert set(expected("names")["methods"]) <= set(errata.METHODS)
    assert set(expected("names")["families"]) <= set(errata.FAMILIES)


@pytest.mark.parametrize("row", PATCHES, ids=lambda row: row["stack"][-1][8:-12])
def test_a_patch_does_what_it_did_and_is_undone(row: dict[str, Any], demo: Any) -> None:
    before = weights(demo)
    patches = [errata.Patch.load(OLD / path) for path in row["stack"]]
    last = patches[-1]
    assert last.digest == row["digest"]
    assert last.size == row["size"]
    assert list(last.provenance.parents) == [patch.digest for patch in patches[:-1]]
    assert {prompt: demo.generate(prompt, 8) for prompt in row["before"]} == row["before"]
    for patch in patches:
        demo.apply(patch)
    assert {prompt: demo.generate(prompt, 8) for prompt in row["after"]} == row["after"]
    deltas = [stored_delta(OLD / path) for path in row["stack"]]
    assert set(deltas[-1]) == set(row["norms"])
    for name, norm in row["norms"].items():
        assert float(deltas[-1][name].norm()) == pytest.approx(norm, rel=1e-5)
        total = sum(delta[name] for delta in deltas if name in delta)
        assert isinstance(total, Tensor)
        changed = dict(demo.model.named_parameters())[name].detach().double() - before[name]
        assert closeness(changed, total) < 1e-5
    for patch in reversed(patches):
        demo.undo(patch)
    assert same_bits(demo, before)
    if len(patches) == 1:
        with last.applied(demo.model):
            assert not same_bits(demo, before)
        assert same_bits(demo, before)


def test_a_patch_that_is_saved_again_is_the_same_patch(tmp_path: Path) -> None:
    for row in PATCHES:
        patch = errata.Patch.load(OLD / row["stack"][-1])
        again = errata.Patch.load(patch.save(tmp_path / "again.safetensors"))
        assert again == patch and again.digest == row["digest"]


def test_python_makes_the_patch_that_the_old_command_made(demo: Any) -> None:
    before, fact = weights(demo), errata.EditRequest.parse(FACT, TARGET)
    patch = errata.edit(demo, [fact], "rome", corpus="demo")
    demo.undo(patch)
    assert same_bits(demo, before)
    old = errata.Patch.load(OLD / "results/ROME/run_000/patch.safetensors")
    assert old.provenance.requests == patch.provenance.requests
    ours, theirs = patch.provenance.base.model_dump(), old.provenance.base.model_dump()
    assert same_record(theirs, ours)
    assert set(patch.updates) == set(old.updates)
    for name, update in old.updates.items():
        assert closeness(patch.updates[name].delta(), update.delta()) < 1e-2


def test_a_model_takes_old_patches_when_it_is_loaded() -> None:
    (row,) = (row for row in PATCHES if row["stack"][-1].startswith("results/MEMIT/run_000"))
    model = errata.load("demo", device="cpu", patches=[OLD / path for path in row["stack"]])
    assert isinstance(model, errata.EditedModel)
    assert {prompt: model.generate(prompt, 8) for prompt in row["after"]} == row["after"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_requests_are_read(ending: str) -> None:
    found = errata.read_requests(OLD / f"requests.{ending}")
    fact = errata.EditRequest.parse(FACT, TARGET)
    assert found == [fact] * (1 if ending == "csv" else 2)


@pytest.mark.parametrize("name", SAID)
def test_it_says_the_same_and_does_nothing_anew(name: str, run: Call, folder: Path) -> None:
    """Finished traces, recipes and survival runs are shown, stored moments found."""
    before = files(folder)
    found = told(run, *SAID[name]["call"])
    assert list(differences(SAID[name]["said"], found)) == []
    after = files(folder)
    assert {path for path in after if path.suffix != ".png"} == set(before)
    for place in ("patch*.safetensors", "params.json", "cases.jsonl", "moments/*/*.safetensors"):
        assert all(after[path] == before[path] for path in before if path.match(place)), place


def test_stored_moments_are_read() -> None:
    paths = sorted(OLD.glob("cache/moments/*/*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        moment = errata.SecondMoment.load(path)
        row = SAID["stats"]["said"]["moments"][0]
        assert moment.count == row["tokens"]
        assert tuple(moment.matrix.shape) == (row["dimensions"], row["dimensions"])
        assert torch.equal(moment.matrix, moment.matrix.T)


@pytest.mark.parametrize("changed", [False, True], ids=["as it was", "with other sums"])
def test_a_stopped_measurement_goes_on(
    changed: bool, run: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the sums in its file are used is seen when they are others."""
    monkeypatch.setenv("ERRATA_CACHE", "stopped_cache")
    (partial,) = (folder / "stopped_cache").rglob("*.partial")
    if changed:
        with safe_open(partial, framework="pt") as file:
            header = file.metadata()
            sums = {name: 2 * file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(sums, partial, header)
    run(*SAID["stats"]["call"])
    assert not partial.exists()
    for path in (folder / "cache" / "moments").glob("*/*.safetensors"):
        place = folder / "stopped_cache" / "moments" / path.parent.name
        (found,) = place.glob(f"{path.name.rpartition('-')[0]}-*")
        whole, resumed = errata.SecondMoment.load(path), errata.SecondMoment.load(found)
        assert (closeness(resumed.matrix, whole.matrix) < 1e-5) is not changed


def test_a_killed_run_goes_on_and_ends_like_a_whole_one(
    run: Call, folder: Path, tmp_path: Path
) -> None:
    command = json.loads((STOPPED / "params.json").read_text("utf-8"))["command"]
    first = (STOPPED / "patch_0000.safetensors").read_bytes()
    assert not (STOPPED / "summary.json").exists()
    run(*shlex.split(command)[1:])
    assert [path.name for path in (folder / "stopped/ROME").iterdir()] == ["run_000"]
    assert (STOPPED / "patch_0000.safetensors").read_bytes() == first
    assert (STOPPED / "summary.json").exists() and not (STOPPED / "parts").exists()

    (tmp_path / "fresh").mkdir()
    with chdir(tmp_path / "fresh"):
        run(*shlex.split(command)[1:])
        whole = {p.name: errata.Patch.load(p) for p in sorted(STOPPED.glob("patch*"))}
    assert len(whole) == 3
    for name, patch in whole.items():
        resumed = errata.Patch.load(STOPPED / name)
        if name != "patch_0000.safetensors":
            assert resumed.digest == patch.digest
        uninterrupted = errata.Patch.load(folder / "results/ROME/run_001" / name)
        for weight, update in uninterrupted.updates.items():
            assert closeness(resumed.updates[weight].delta(), update.delta()) < 1e-2
            assert closeness(patch.updates[weight].delta(), update.delta()) < 1e-2
    rows = [
        [json.loads(line)["case_id"] for line in (place / "cases.jsonl").open(encoding="utf-8")]
        for place in (STOPPED, folder / "results/ROME/run_001")
    ]
    assert rows[0] == rows[1]


def test_every_flag_is_still_accepted() -> None:
    now = flags()
    for verb, names in expected("flags").items():
        assert verb in now
        assert set(names) <= set(now[verb]), verb


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in KEYS],
)
def test_every_key_is_still_printed(name: str, run: Call, folder: Path) -> None:
    found = key_paths(told(run, *KEYS[name]["call"]))
    assert set(KEYS[name]["keys"]) <= found


@pytest.mark.slow
def test_a_finished_recipe_can_be_done_once_more(run: Call, folder: Path) -> None:
    again = told(run, *SAID["run"]["call"], "--again")
    assert again["run"] != SAID["run"]["said"]["run"]
    assert list(again["stages"]) == list(SAID["run"]["said"]["stages"])


def test_no_file_holds_a_path_from_where_it_was_written() -> None:
    for path in (path for path in OLD.rglob("*") if path.is_file()):
        if path.suffix in (".json", ".jsonl", ".md", ".yaml", ".csv", ".txt"):
            text = path.read_text("utf-8")
            assert not any(f"{root}/" in text for root in ("/tmp", "/root", "/home", "/work")), path
