"""The editing methods, one file each; a new method is a file and a line here."""

from __future__ import annotations

from errata.core.errors import ErrataError
from errata.methods.alphaedit import AlphaEdit
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.memit import Memit
from errata.methods.rome import Rome

__all__ = ["METHODS", "AlphaEdit", "ClosedForm", "Memit", "Rome", "method_named"]

METHODS: dict[str, type[ClosedForm]] = {
    "rome": Rome,
    "memit": Memit,
    "alphaedit": AlphaEdit,
}
"""Every method by the name that the command line, recipes and patches use."""


def method_named(name: str) -> type[ClosedForm]:
    """Return the method class called `name`; an unknown name is an `ErrataError`."""
    if name.lower() not in METHODS:
        raise ErrataError(f"there is no method {name!r}", f"known methods: {', '.join(METHODS)}")
    return METHODS[name.lower()]
