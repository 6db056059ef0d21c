"""errata: edit the facts a language model holds, and see what changed.

    import errata
    model = errata.load("demo")

The names below load on first use, so that importing errata stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from errata.errors import ErrataError

if TYPE_CHECKING:
    from errata.request import EditRequest
    from errata.request_files import read_requests

_LAZY = {
    "EditedModel": "errata.model",
    "edit": "errata.edits",
    "load": "errata.model",
    "Patch": "errata.patch",
    "SecondMoment": "errata.moment",
    "METHODS": "errata.methods",
    "FAMILIES": "errata.family",
}

_LIGHT = {"EditRequest": "errata.request", "read_requests": "errata.request_files"}

__all__ = ["EditRequest", "ErrataError", "read_requests", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module({**_LAZY, **_LIGHT}[name]), name)
    raise AttributeError(f"module 'errata' has no attribute {name!r}")
