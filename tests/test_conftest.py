"""The network is closed to tests, and the parity tests run exactly when they are given results."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def test_a_connection_that_leaves_the_machine_raises() -> None:
    with (
        socket.socket() as outside,
        pytest.raises(RuntimeError, match=r"connect for '192\.0\.2\.1'"),
    ):
        outside.connect(("192.0.2.1", 80))
    with socket.socket() as outside, pytest.raises(RuntimeError, match="tests use no network"):
        outside.connect_ex(("192.0.2.1", 80))


def test_a_look_up_that_leaves_the_machine_raises() -> None:
    with pytest.raises(RuntimeError, match=r"getaddrinfo for 'example\.org'"):
        socket.create_connection(("example.org", 443))


def test_a_connection_on_this_machine_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with our conftest, one plain test and one parity test that reads its folder."""
    parity = tmp_path / "project" / "tests" / "parity"
    parity.mkdir(parents=True)
    shutil.copy(HERE / "conftest.py", parity.parent)
    (tmp_path / "project" / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (parity.parent / "test_plain.py").write_text("def test_plain(): ...\n")
    (parity / "test_parity.py").write_text(
        "def test_parity(golden): assert (golden / 'found').is_file()\n"
    )
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "found").touch()
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("arguments", "closing", "code"),
    [
        (["tests"], "1 passed", 0),
        (["tests", "--golden", "../golden"], "2 passed", 0),
        (["tests/parity", "--golden", "../golden"], "1 passed", 0),
        (["--golden", "../golden", "tests/parity"], "1 passed", 0),
        (["tests/parity", "--golden=."], "1 failed", 1),
        (["tests/parity"], "add --golden DIR", 4),
        (["tests/parity/test_parity.py::test_parity"], "add --golden DIR", 4),
        (["tests/parity", "--golden", "../nowhere"], "no folder ../nowhere", 4),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_parity_runs_when_golden_results_are_named(
    project: Path, arguments: list[str], closing: str, code: int
) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=project, env=bare, capture_output=True, text=True, check=False
    )
    assert closing in done.stdout + done.stderr
    assert done.returncode == code
