"""Files of second moments: the identity of how one was measured, and reading its parts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.core.settings import Settings
from errata.models.identity import old_form, same_record
from errata.statistics.convergence import Convergence
from errata.statistics.packed import PACKED, unpack

UNREADABLE = (OSError, SafetensorError, LookupError, TypeError, ValueError, OverflowError)
"""Exceptions that reading a damaged file raises."""
MATRIX = "second_moment"
"""The tensor's name in a file that is not packed."""


class SecondMomentIdentity(Settings):
    """How a second moment was measured; moments that differ in any field are different."""

    weights: str
    """Hash of the base model's stored weights."""
    tokenizer: str
    """Hash of the tokenizer."""
    corpus: str
    """Hash of the text."""
    tokens: int | None
    """Requested number of tokens; None for the whole corpus."""
    length: int
    """Texts are truncated to this many tokens."""
    weight: str
    """Full name of the weight whose inputs were measured."""
    dtype: str
    """The dtype the model ran in."""

    def matches(self, other: SecondMomentIdentity | None) -> bool:
        """Return whether both are the same; an old-form model hash matches the new one."""
        return other is not None and same_record(self.model_dump(), other.model_dump())

    @property
    def old(self) -> SecondMomentIdentity:
        """This identity with the model's hash in the old form (see `models.identity`)."""
        return self.with_values(weights=old_form(self.weights))

    @property
    def digest(self) -> str:
        """A short name for file names."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Header(NamedTuple):
    """The header of a moment's file."""

    tokens: int
    """Number of tokens in the mean."""
    identity: SecondMomentIdentity | None
    convergence: Convergence | None
    distinct: int | None
    """The same if texts that repeat count once; None if unknown."""


def read_header(path: Path) -> Header:
    """Read only the header of a moment's file; raises `ErrataError` when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return header_of(file)
    except UNREADABLE as error:
        raise no_moment(path, error) from None


def header_of(file: Any) -> Header:
    """Return the header of an open file; raises an error of `UNREADABLE` for other files."""
    found = parse_json((file.metadata() or {}).get("errata", ""))
    identity, convergence = found["identity"], found.get("convergence")
    count, distinct = int(found["count"]), found.get("distinct")
    if count < 1:
        raise ValueError(f"it was measured on {count} tokens")
    return Header(
        count,
        identity and SecondMomentIdentity.model_validate(identity),
        convergence and Convergence.model_validate(convergence),
        None if distinct is None else int(distinct),
    )


def matrix_of(file: Any) -> Tensor:
    """Return C, unpacked if the file is packed."""
    names = set(file.keys())
    if names == PACKED:
        return unpack({name: file.get_tensor(name) for name in names})
    matrix: Tensor = file.get_tensor(MATRIX)
    return matrix


def no_moment(path: Path, error: Exception) -> ErrataError:
    """Return the error of a file that cannot be read as a moment."""
    return ErrataError(
        f"{path} is not a second moment: {reason(error)}", "delete it and run `errata stats`"
    )


def differences(found: SecondMomentIdentity | None, expected: SecondMomentIdentity) -> str:
    """Return the fields in which two identities differ, in words."""
    if found is None:
        return "its identity is not recorded"
    actual, wanted = found.model_dump(), expected.model_dump()
    return ", ".join(
        f"{key} {actual[key]} instead of {wanted[key]}"
        for key in actual
        if actual[key] != wanted[key]
    )
