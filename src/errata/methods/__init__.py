"""The editing methods, one file each; a new method is one file and one line in `METHODS`."""

from __future__ import annotations

from errata.core.errors import ErrataError
from errata.methods.alphaedit import AlphaEdit
from errata.methods.base import Method
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.memit import Memit
from errata.methods.rome import Rome

__all__ = ["METHODS", "AlphaEdit", "ClosedForm", "Memit", "Method", "Rome", "method_named"]

METHODS: dict[str, type[Method]] = {
    "rome": Rome,
    "memit": Memit,
    "alphaedit": AlphaEdit,
}
"""Every method by its name in commands, recipes and patches."""


def method_named(name: str) -> type[Method]:
    """Return the method class called `name`; an unknown name is an `ErrataError`."""
    if name.lower() not in METHODS:
        raise ErrataError(f"there is no method {name!r}", f"known methods: {', '.join(METHODS)}")
    return METHODS[name.lower()]
