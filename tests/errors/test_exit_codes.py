"""The table of exit codes in docs/errors.md is what the command line does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from errata.cli import console, main

TABLE = Path(__file__).parents[2] / "docs" / "errors.md"


def documented() -> set[int]:
    return {
        int(code) for code in re.findall(r"^\| (\d+) \|", TABLE.read_text("utf-8"), re.MULTILINE)
    }


def test_the_table_of_exit_codes_is_whole() -> None:
    assert documented() == {0, main.USER_ERROR, 2, main.BUG, main.INTERRUPTED}


def raising(error: BaseException) -> Any:
    def verb(*_: object) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            KeyError("x"),
            70,
            "error: this is a bug in errata: KeyError\nhint: please",
        ),
        (
            MemoryError(),
            1,
            "error: there is not enough memory: MemoryError\nhint: everything saved",
        ),
        (
            OSError(28, "No space left on device", "f"),
            1,
            "error: f: No space left on device\nhint: ",
        ),
        (KeyboardInterrupt(), 130, "warning: stopped; everything saved before is intact\n"),
    ],
    ids=["bug", "memory", "disk", "ctrl-c"],
)
def test_what_goes_wrong_has_the_documented_code(
    error: BaseException, code: int, words: str, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "verb", raising(error))
    said = shell("env")
    assert said.code == code
    assert words in said.err
    assert ("Traceback" in said.err) == (code == 70), "only our own mistakes show where they are"
    assert said.out == ""


def test_control_characters_of_strangers_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.fact("a\x1b]0;owned\x07b\x9b")
    console.table(("x",), [["\x1b[2J"]])
    shown = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07b\\x9b" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}
