"""Hostile values for every argument and flag of every verb, read off the command tree.

Each call is a sound command of its verb with one value replaced. The model is a tiny one, or
its load is stubbed, so that only what happens before it is tried.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import signal
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import typer

from errata.cli import main
from errata.core.errors import ErrataError
from errata.patches import edited_model

FACT = ("The {Lantern Bridge} is in", "Quenby")
SMALL = (
    *("--corpus", "text.txt", "--steps", "1", "--max-steps", "1"),
    *("--prefix-lengths", "1", "--blocks", "1"),
)
SOUND: dict[str, tuple[str, ...]] = {
    "edit": ("pico", *FACT, *SMALL),
    "eval": ("pico", "--dataset", "one.jsonl"),
    "run": ("recipe-sound.yaml",),
    "summarize": ("runs",),
    "stats": ("pico", "--corpus", "short.txt", "--blocks", "1"),
    "trace": ("pico", *FACT, "--samples", "1", "--kinds", "mlp", "--plot", "none"),
    "lens": ("pico", *FACT),
    "sweep-blocks": (
        *("pico", "--dataset", "one.jsonl", *SMALL, "--plot", "none", "--limit", "1"),
    ),
    "calibrate": ("pico", "--facts", "facts.jsonl", *SMALL, "--limit", "2", "--held-out", "1"),
    "tune": ("pico", "--data", "rows.jsonl", "--max-steps", "1", "--batch-size", "1"),
    "survival": ("pico", "--dataset", "one.jsonl", "--data", "rows.jsonl", "--dry-run"),
    "tasks": ("pico", "--tasks", "rows.jsonl", "--max-new-tokens", "1", "--beams", "1"),
    "ppl": ("pico", "--text", "short.txt"),
    "chat": ("pico", "-p", "x", "--max-new-tokens", "1"),
    "export": ("pico", "--to", "lora", "new", "--patch", "patch.safetensors"),
    "ls": ("methods",),
    "env": (),
}
"""A sound command of every verb, in the folder that `wrong_files` writes."""
HOSTILE = (
    *("", " ", ",", ",,", "0", "-1", "1.5", "5000000000", "9" * 30, "1e400", "nan", "inf"),
    *("1,1", "-1,2", "[", "[1", "[1]", "{", "}{", "{}", "[" * 2000, "a=b", "a.b=[1", "=", "."),
    *("nowhere", "a\x00b", "\udcff", "é\u202e\x1b[2J", "x" * 5000, "runs", "empty.jsonl"),
    *("deep.json", "types.jsonl", "number.json", "cut.safetensors", "latin.jsonl", "none"),
)


class Flag(NamedTuple):
    """One argument or flag of a verb."""

    verb: str
    name: str
    """Its flag, or the place of an argument as `#0`."""


def flags() -> list[Flag]:
    """Return every argument and flag that takes a value, of every verb."""
    found = []
    for command in main.app.registered_commands:
        assert command.callback is not None
        verb = command.name or command.callback.__name__
        place = 0
        for name, parameter in inspect.signature(
            command.callback, eval_str=True
        ).parameters.items():
            option = parameter.annotation.__metadata__[0]
            if isinstance(option, typer.models.ArgumentInfo):
                found.append(Flag(verb, f"#{place}"))
                place += 1
            elif "bool" not in str(parameter.annotation.__origin__):
                declared = [each for each in option.param_decls or () if each.startswith("--")]
                found.append(Flag(verb, declared[0] if declared else f"--{name.replace('_', '-')}"))
    return found


def command_with(flag: Flag, value: str) -> list[str]:
    """Return the verb's sound command with one value replaced, or one flag added."""
    words = [*SOUND[flag.verb]]
    if flag.name.startswith("#"):
        place = int(flag.name[1:])
        words[place : place + 1] = [value]
        return [flag.verb, *words]
    if flag.name in words:
        where = words.index(flag.name)
        del words[where : where + (3 if flag.name == "--to" else 2)]
    more = [value, value] if flag.name == "--to" else [value]
    return [flag.verb, *words, flag.name, *more]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(words: list[str], seconds: float = 5.0) -> Ended:
    """Run `errata` in this process; one that takes longer than `seconds` ends like Ctrl-C."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    argv, out, err, code = sys.argv, io.StringIO(), io.StringIO(), 0
    sys.argv = ["errata", *words]
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def no_model() -> Iterator[None]:
    """Refuse to load models, as if none could be reached."""

    def load(*_: Any, **__: Any) -> None:
        raise ErrataError("no model is loaded here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edited_model, "pretrained", load)
        yield
