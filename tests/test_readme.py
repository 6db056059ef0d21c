"""The README's commands and Python run as they stand there, on the embedded model.

Console blocks hold commands behind `$ `; what they print is shown shortened, so only success
and the first words of each shown line are compared. A YAML block is the file that its first line
names. `make` targets are run by the gate itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```(console|python|yaml)\n(.*?)```", re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(README.read_text("utf-8")) if found == kind]


def commands() -> list[tuple[str, list[str]]]:
    """Each command with the lines that the README shows below it."""
    found: list[tuple[str, list[str]]] = []
    for line in (line for block in blocks("console") for line in block.splitlines()):
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip():
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for text in blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(arguments: list[str] | str, folder: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "ERRATA_CACHE": str(folder / "cache"),
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


def test_every_command_of_the_readme_runs_and_prints_what_is_shown(folder: Path) -> None:
    assert commands(), "the README shows no commands"
    for command, shown in commands():
        done = run(command, folder)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        printed = words(done.stdout)
        for line in shown:
            assert words(line) in printed, f"$ {command}\nlacks: {line}\n{done.stdout}"


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    assert blocks("python"), "the README shows no Python"
    for code in blocks("python"):
        done = run([sys.executable, "-c", code], folder)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
