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
    from errata.data.request import EditRequest as EditRequest
    from errata.data.request_files import read_requests as read_requests

_PLACES = {
    "EditRequest": "errata.data.request:EditRequest",
    "EditedModel": "errata.patches.edited_model:EditedModel",
    "FAMILIES": "errata.models.families:FAMILIES",
    "METHODS": "errata.methods:METHODS",
    "Patch": "errata.patches.weight_patch:WeightPatch",
    "SecondMoment": "errata.statistics.second_moment:SecondMoment",
    "Store": "errata.statistics.store:Store",
    "edit": "errata.methods.edit:edit",
    "load": "errata.patches.edited_model:load",
    "load_edit": "errata.patches.base:load_edit",
    "read_requests": "errata.data.request_files:read_requests",
}
"""Where each public name is defined."""

__all__ = ["ErrataError", "__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'errata' has no attribute {name!r}")
