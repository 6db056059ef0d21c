"""What the README and the pages under docs/ show runs as it stands there, on the embedded model.

Console blocks hold commands behind `$ `; what they print is shown shortened, so only success
and the first words of each shown line are compared. A YAML block is the file that its first line
names. `make` targets are run by the gate itself. Each page is read in a folder of its own.
Commands on smollm2, which is in a package of its own, are left to `real/test_readme.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HOME = Path(__file__).parents[1]
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(console|python|yaml)\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"`((?:src|tests|docs|examples)/[\w./-]+\.\w+)`")


def blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == kind]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each command, one that a backslash continues as one line, with the lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    joined = "".join(blocks(page, "console")).replace("\\\n", "")
    for line in joined.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def needs_package(command: str) -> bool:
    """Whether a command loads smollm2."""
    return "smollm2" in command.split()


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(page.stem)
    for text in blocks(page, "yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(arguments: list[str] | str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "ERRATA_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        arguments,
        shell=isinstance(arguments, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_command_of_a_page_runs_and_prints_what_is_shown(
    page: Path, folder: Path, cache: Path
) -> None:
    for command, shown in commands(page):
        if needs_package(command):
            continue
        done = run(command, folder, cache)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        printed = words(done.stdout)
        for line in shown:
            assert words(line) in printed, f"$ {command}\nlacks: {line}\n{done.stdout}"


def test_the_python_of_a_page_runs(page: Path, folder: Path, cache: Path) -> None:
    for code in blocks(page, "python"):
        done = run([sys.executable, "-c", code], folder, cache)
        assert done.returncode == 0, f"{code}\n{done.stderr}"


def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    for name in NAMED.findall(page.read_text("utf-8")):
        assert (HOME / name).is_file(), f"{page.name} names {name}"


def test_the_readme_and_the_tutorial_show_something_to_do() -> None:
    for page in (HOME / "README.md", HOME / "docs" / "tutorial.md"):
        assert commands(page)
        assert blocks(page, "python")
