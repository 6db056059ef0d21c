"""A user's folder, with everything that can be wrong in it, and `errata` run there in process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from errata.cli.main import main
from wrong_files import write_all


class Said(NamedTuple):
    code: int
    out: str
    err: str


Shell = Callable[..., Said]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; what tests write goes elsewhere."""
    folder = tmp_path_factory.mktemp("user")
    write_all(folder)
    return folder


@pytest.fixture
def shell(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Shell:
    """Run `errata` in the user's folder; cache and results lie in a folder of their own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["errata", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return run
