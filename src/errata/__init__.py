"""errata: edit the facts that a language model holds, and see what changed.

    import errata
    model = errata.load("demo")

The public names are imported on first use, so that `import errata` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from errata.core.errors import ErrataError
from errata.core.version import __version__

if TYPE_CHECKING:
    from errata.data.request import EditRequest
    from errata.data.request_files import read_requests

_LAZY = {
    "EditedModel": "errata.patches.edited_model",
    "edit": "errata.methods.edit",
    "load": "errata.patches.edited_model",
    "Patch": "errata.patches.patch",
    "SecondMoment": "errata.statistics.second_moment",
    "Store": "errata.statistics.store",
    "METHODS": "errata.methods",
    "FAMILIES": "errata.models.families",
}

_LIGHT = {"EditRequest": "errata.data.request", "read_requests": "errata.data.request_files"}

__all__ = ["EditRequest", "ErrataError", "__version__", "read_requests", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module({**_LAZY, **_LIGHT}[name]), name)
    raise AttributeError(f"module 'errata' has no attribute {name!r}")
