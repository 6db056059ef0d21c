"""What is compared: every model and every case that the folder named by `--golden` holds.

Nothing is listed on our side. A test asks for `recorded` (one model), `rome_case` or
`memit_case` (one case of one file) and runs once for each that is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parity.recorded import Recorded, models_in

torch.set_num_threads(1)

ROME_FILES = ("rome", "rome_bosfixed")
MEMIT_FILES = ("memit", "memit_earlystop")
SHELF = pytest.StashKey[dict[str, Recorded]]()

Case = tuple[Recorded, str, str]


def cases_in(shelf: dict[str, Recorded], files: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return (model, file, case) for every case in files of one kind."""
    return [
        (name, topic, case)
        for name, recorded in shelf.items()
        for topic in files
        if recorded.has(topic)
        for case in recorded.json(topic)["cases"]
    ]


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--golden")
    if folder is not None:
        try:
            names = models_in(Path(folder))
        except AssertionError as error:
            raise pytest.UsageError(f"--golden: {error}") from None
        config.stash[SHELF] = {name: Recorded(Path(folder), name) for name in names}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shelf = metafunc.config.stash.get(SHELF, {})
    if "recorded" in metafunc.fixturenames:
        metafunc.parametrize("recorded", list(shelf), indirect=True)
    for fixture, files in (("rome_case", ROME_FILES), ("memit_case", MEMIT_FILES)):
        if fixture in metafunc.fixturenames:
            found = cases_in(shelf, files)
            ids = ["-".join(case) for case in found]
            metafunc.parametrize(fixture, found, indirect=True, ids=ids)


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """What is recorded on one model."""
    return request.config.stash[SHELF][request.param]


@pytest.fixture
def rome_case(request: pytest.FixtureRequest) -> Case:
    """One recorded ROME edit."""
    name, topic, case = request.param
    return request.config.stash[SHELF][name], topic, case


@pytest.fixture
def memit_case(request: pytest.FixtureRequest) -> Case:
    """One recorded MEMIT batch."""
    name, topic, case = request.param
    return request.config.stash[SHELF][name], topic, case


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    shelf = terminalreporter.config.stash.get(SHELF, {})
    lines = list(worst_of(shelf))
    if lines:
        terminalreporter.write_sep("-", "largest relative differences")
        for line in lines:
            terminalreporter.write_line(line)


def worst_of(shelf: dict[str, Recorded]) -> Iterator[str]:
    """Yield one line per topic and quantity: the largest difference of all models."""
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for name, recorded in shelf.items():
        for key, difference in recorded.worst.items():
            worst[key] = max((difference, name), worst.get(key, (0.0, "")))
    for (topic, kind), (difference, name) in sorted(worst.items()):
        yield f"{topic:16} {kind:24} {difference:.1e}  {name}"
