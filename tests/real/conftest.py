"""A real model, the facts that it knows, second moments and one patch by each method.

`REAL_MODEL` names the model: a folder, or by default smollm2. Nothing below depends on which one
it is: facts are chosen by asking it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.cli.tour import known_cases, measure_missing
from errata.core.places import moments_folder
from errata.data.case import Case
from errata.data.common_facts import Fact
from errata.experiments.known_facts import known_facts
from errata.methods import METHODS
from errata.methods.edit import compute_edit, prepare
from errata.patches.edited_model import EditedModel, load
from errata.statistics.store import Store

BATCH = 3
"""Number of facts in a batch."""
Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def name() -> str:
    """The model, as commands name it."""
    given = os.environ.get("REAL_MODEL") or "smollm2"
    return str(Path(given).resolve()) if Path(given).is_dir() else given


@pytest.fixture(scope="session")
def unedited(name: str) -> EditedModel:
    return load(name, dtype="float32")


@pytest.fixture
def edited(unedited: EditedModel) -> Iterator[EditedModel]:
    """The model without patches; they are undone afterwards."""
    yield unedited
    while unedited.patches:
        unedited.undo()


@pytest.fixture(scope="session")
def known(unedited: EditedModel) -> list[Fact]:
    """The common facts that the model knows."""
    return known_facts(unedited)


@pytest.fixture(scope="session")
def cases(unedited: EditedModel) -> list[Case]:
    """Facts that the model knows, each of another relation."""
    found = known_cases(unedited)
    assert len(found) >= BATCH, found
    return found[:BATCH]


@pytest.fixture(scope="session")
def store(unedited: EditedModel) -> Store:
    """The default store, with second moments for every method."""
    store = Store(moments_folder())
    measure_missing(unedited, store)
    return store


@pytest.fixture(scope="session")
def patches(
    unedited: EditedModel, cases: list[Case], store: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A patch by each method: of one fact if the method edits one at a time, else of a batch."""
    found = {}
    for key, method in METHODS.items():
        ready = prepare(unedited, method, {}, store=store)
        requests = [case.request for case in cases[: method.batch_limit]]
        patch = compute_edit(unedited, requests, ready.method, moments=ready.moments)
        found[key] = patch.save(tmp_path_factory.mktemp(key) / "patch.safetensors")
    return found


@pytest.fixture(scope="session")
def dataset(cases: Sequence[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases as a file."""
    path = tmp_path_factory.mktemp("dataset") / "cases.jsonl"
    path.write_text("".join(case.model_dump_json() + "\n" for case in cases), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows(known: Sequence[Fact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Known facts as rows to tune on, with answers in a style of their own."""
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    found = [
        {"instruction": fact.question, "output": f"Answer: {fact.answer}!"}
        for fact in known[-len(known) // 2 :]
    ]
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def errata() -> Command:
    """Run a command that prints one JSON object."""

    def run(*arguments: object) -> dict[str, Any]:
        command = [*map(str, arguments), "--json"]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    return run
