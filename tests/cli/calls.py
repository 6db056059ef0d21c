"""Counting the calls of errata's functions while a verb runs."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any, NamedTuple

import pytest

from errata.cli.main import main


class Calls(NamedTuple):
    """The calls of errata's functions, named by module and qualified name."""

    counts: Counter[str]
    from_verbs: Counter[str]
    """Those of functions outside `cli` that a module of `cli` called."""


def calls(*arguments: str) -> Calls:
    """Run `errata` with these arguments in the current folder and count the calls."""
    found = Calls(Counter(), Counter())

    def count(frame: FrameType, event: str, _: Any) -> None:
        name = _name(frame)
        if event == "call" and name is not None:
            found.counts[name] += 1
            caller = _name(frame.f_back) if frame.f_back else None
            if caller and caller.startswith("cli.") and not name.startswith("cli."):
                found.from_verbs[name] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["errata", *arguments])
        sys.setprofile(count)
        try:
            main()
        except SystemExit as end:
            assert not end.code
        finally:
            sys.setprofile(None)
    return found


def _name(frame: FrameType) -> str | None:
    module = str(frame.f_globals.get("__name__", ""))
    if not module.startswith("errata."):
        return None
    return f"{module.removeprefix('errata.')}.{frame.f_code.co_qualname}"
