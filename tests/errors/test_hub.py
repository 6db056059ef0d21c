"""A Hub that answers no, and none that answers: a server of our own stands in its place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import close_session

if TYPE_CHECKING:
    from conftest import Shell


class Gate(BaseHTTPRequestHandler):
    """Answers as the Hub does for a model whose licence was not accepted."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, "-m", "errata", "chat", "owners/model", "-p", "x"],
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_gated_model_is_told_with_what_to_do(
    hub: str, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_constants = {
        "ENDPOINT": hub,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path),
    }
    for name, value in hub_constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for name in list(os.environ):
        if "proxy" in name.lower():
            monkeypatch.delenv(name)
    close_session()  # one that another test opened has the settings of then
    said = shell("chat", "owners/model", "-p", "x")
    assert said == (
        1,
        "",
        "error: owners/model is gated: it can be loaded only after accepting its licence\n"
        "hint: accept it on https://huggingface.co/owners/model, then log in here: hf auth login\n",
    )


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_told_in_words(tmp_path: Path) -> None:
    said = ask("http://127.0.0.1:9", tmp_path)
    assert (said.returncode, said.stdout) == (1, "")
    first, *hints = said.stderr.splitlines()[-3:]
    assert first.startswith("error: cannot load 'owners/model': ")
    assert [hint.split(":")[0] for hint in hints] == ["hint", "hint"]
