"""Fixtures for all tests: one thread, no network, data folders given from outside.

`--golden DIR` names a folder of recorded reference results; without it the tests under
`tests/parity` are not collected. `ERRATA_DATA` names a folder of real samples; without it
the tests that ask for `errata_data` are skipped.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
CACHE = tempfile.TemporaryDirectory(prefix="errata-tests-")
os.environ["ERRATA_CACHE"] = CACHE.name

PARITY = Path(__file__).resolve().parent / "parity"


class NetworkError(RuntimeError):
    """A test accessed the network; not an OSError, so that code does not treat it as offline."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", help="folder of recorded reference results")
    parser.addoption(
        "--update-messages", action="store_true", help="write tests/errors/messages.txt anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    golden = config.getoption("--golden")
    if golden is not None:
        folder = (config.invocation_params.dir / golden).resolve()
        if not folder.is_dir():
            raise pytest.UsageError(f"--golden: there is no folder {golden}")
        config.option.golden = str(folder)
    elif any(in_parity(config.invocation_params.dir / argument) for argument in config.args):
        raise pytest.UsageError("tests/parity compares with recorded results: add --golden DIR")
    patch = pytest.MonkeyPatch()
    close_network(patch)
    config.add_cleanup(patch.undo)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("--golden") is None and in_parity(collection_path) else None


def pytest_collection() -> None:
    gc.disable()  # imports leave little garbage and many objects


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # so that no collection goes through the imports again
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def in_parity(path: Path) -> bool:
    """Whether a path (or a test id that starts with one) lies in tests/parity."""
    return Path(str(path).split("::")[0]).resolve().is_relative_to(PARITY)


def is_local(host: object) -> bool:
    """Whether a host is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


def close_network(patch: pytest.MonkeyPatch) -> None:
    """Make connections and look-ups beyond this machine raise `NetworkError`."""

    def guard(name: str, host: object) -> None:
        if not is_local(host):
            raise NetworkError(f"a test called {name} for {host!r}; tests use no network")

    for method in ("connect", "connect_ex"):
        real = getattr(socket.socket, method)

        def connect(self: socket.socket, address: Any, *, real: Any = real) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                guard("connect", address[0])
            return real(self, address)

        patch.setattr(socket.socket, method, connect)

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        guard("getaddrinfo", host)
        return look_up(host, *args, **kwargs)

    patch.setattr(socket, "getaddrinfo", getaddrinfo)


class Said(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Shell = Callable[..., Said]


@pytest.fixture
def shell(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Shell:
    """Run `errata` in `folder`, a fixture of the test; cache and home are a folder of their own."""
    from errata.cli.main import main

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


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder of recorded reference results, from `--golden`."""
    return Path(request.config.getoption("--golden"))


@pytest.fixture(scope="session")
def errata_data() -> Path:
    """The folder of real dataset samples, from ERRATA_DATA; the test is skipped without it."""
    folder = os.environ.get("ERRATA_DATA")
    if not folder:
        pytest.skip("ERRATA_DATA names no folder of real samples")
    if not Path(folder).is_dir():
        pytest.fail(f"ERRATA_DATA names {folder}, which is no folder")
    return Path(folder)
