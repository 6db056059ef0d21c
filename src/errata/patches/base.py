"""The `Edit` protocol: what every kind of edit shares, and how an edit is read from its file.

An edit is a value with a kind, a provenance and a digest. One safetensors file holds it: tensors,
and a JSON header with the provenance and the rest of the state. Nothing in a file is code.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError, Hint
from errata.core.files import parse_json, reason, write_safetensors
from errata.core.settings import Settings, is_none
from errata.data.request import EditRequest
from errata.models.families import weight_of
from errata.models.identity import tensor_hash

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel

FORMATS = (1, 2)
"""File formats: 1 holds a weight patch with keys, 2 an edit of any kind."""
EDIT_KINDS = {
    "weight": "errata.patches.weight_patch:WeightPatch",
    "module": "errata.patches.module_patch:ModulePatch",
    "prompt": "errata.patches.prompt_patch:PromptPatch",
}
"""Where the class of each kind is; it is imported when a file of that kind is read."""
NO_PATCH = "a patch is a .safetensors file written by errata; if yours is truncated, copy it again"
ALLOW_BASE = (
    "load the model it was made for",
    Hint(
        "to apply it to this model anyway, pass allow_base=True",
        "to apply it to this model anyway, add --allow-base",
    ),
)
"""Hints for an edit or adapter that was made for another model."""


class Base(Settings):
    """The model that an edit was made for."""

    name: str
    """Name or path from which it was loaded."""
    model_type: str
    """Its `config.model_type`."""
    weights: str
    """Hash of its stored weights (see `models.identity`)."""
    quantisation: str | None = Field(None, exclude_if=is_none)
    """Quantisation of the GGUF file from which it was converted, such as Q4_1."""


class Provenance(Settings):
    """The origin of an edit, sufficient to reproduce it."""

    title: ClassVar[str] = "the provenance in the patch"
    base: Base
    """The model for which it was made."""
    method: str
    """Name of the editing method."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """All settings of the method; empty for an edit that no method made."""
    requests: tuple[EditRequest, ...] = ()
    """The edit requests; empty for an edit that was not made from requests."""
    prefixes: tuple[str, ...] = ()
    """The context prefixes used."""
    parents: tuple[str, ...] = ()
    """Digests of the edits that were applied when this one was made, in order."""
    weights: Mapping[str, str] = Field(default_factory=dict)
    """Hash of each edited weight in the base model."""
    moments: Mapping[str, str] = Field(default_factory=dict)
    """Digest of the second moment used, per block."""
    losses: tuple[float, ...] = ()
    """Final loss of the value search, per request."""
    stopped_short: tuple[int, ...] | None = Field(None, exclude_if=is_none)
    """Indices of the requests whose target did not hold when the search ended; None where this is
    not known, or no targets were searched."""
    notes: tuple[str, ...] = ()
    """Notes for the reader: warnings, ranks, fallbacks."""
    versions: Mapping[str, str] = Field(default_factory=dict)
    """Versions of errata, torch and transformers."""
    command: str | None = None
    """A command that reproduces the edit."""


class Edit(ABC):
    """A change of a model's behaviour that can be applied, undone, stacked, saved and loaded."""

    kind: ClassVar[str]
    """The key of the class in `EDIT_KINDS`."""
    state_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the header fields that hold state, besides format, kind and provenance."""
    provenance: Provenance

    @property
    @abstractmethod
    def places(self) -> tuple[str, ...]:
        """Names of the weights or modules that the edit changes, sorted; may be empty."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store in the file, by name."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """Return the format, kind and state to store in the file's header with the provenance."""

    @classmethod
    @abstractmethod
    def read(
        cls,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        provenance: Provenance,
        path: str,
    ) -> Self:
        """Build an edit from a file's tensors, and the format and state in its header.

        Raises `ErrataError` if they are inconsistent.
        """

    @abstractmethod
    def on(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Apply the edit to a plain Transformers model within a `with` block."""

    @property
    def summary(self) -> str:
        """The first request and the number of others; without requests, the changed places."""
        requests = self.provenance.requests
        shown = [f"{each.marked} → {each.target}" for each in requests[:1]] or [*self.places[:1]]
        more = len(requests or self.places) - 1
        return (shown or [self.kind])[0] + (f" and {more} more" if more > 0 else "")

    def __eq__(self, other: object) -> bool:
        """Two edits are equal if kind, state and provenance are identical."""
        return isinstance(other, Edit) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        """Short representation: digest, number of edits and method, without the tensors."""
        edits, method = len(self.provenance.requests), self.provenance.method
        name = "Patch" if self.kind == "weight" else type(self).__name__
        return f"{name}({self.digest[:12]}: {edits} edits by {method})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over header and tensors, which identifies the edit."""
        digest = hashlib.sha256(self._text().encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file atomically; return its path."""
        write_safetensors(Path(path), self.tensors(), {"errata": self._text()})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an edit of this kind; raises `ErrataError` for any other file (see `load_edit`)."""
        edit = load_edit(path)
        if not isinstance(edit, cls):
            raise ErrataError(
                f"{path} holds a {edit.kind} patch, not a {cls.kind} patch",
                "errata.load_edit reads patches of any kind",
            )
        return edit

    @contextmanager
    def applied(
        self, model: PreTrainedModel | EditedModel, *, allow_base: bool = False
    ) -> Iterator[PreTrainedModel | EditedModel]:
        """Apply the edit within a `with` block and restore the model afterwards.

        On an `EditedModel` it is on top of the stack. Raises `ErrataError` if the edit was made
        for other weights, unless `allow_base`.
        """
        if isinstance(model, PreTrainedModel):
            if not allow_base:
                self.check_weights(model)
            with self.on(model):
                yield model
        else:
            model.apply(self, allow_base=allow_base)
            try:
                yield model
            finally:
                model.undo(self)

    def check_weights(self, model: PreTrainedModel) -> None:
        """Raise `ErrataError` unless the model's weights match the recorded hashes."""
        for name, expected in self.provenance.weights.items():
            if tensor_hash(weight_of(model, name)[1]) != expected:
                raise ErrataError(
                    f"this patch was made for another model: {self.provenance.base.name} "
                    f"({name} differs)",
                    *ALLOW_BASE,
                )

    def _text(self) -> str:
        return json.dumps(
            {**self.header(), **self.provenance.model_dump(mode="json")}, sort_keys=True
        )


def load_edit(path: str | Path) -> Edit:
    """Read an edit of any kind from its safetensors file.

    Raises `ErrataError` for a file that is missing, damaged or not an edit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {}).get("errata", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ErrataError(
            f"there is no patch at {path}", "`errata ls patches` lists the patches in results/"
        ) from None
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise ErrataError(f"{path} is not a patch: {reason(error)}", NO_PATCH) from None
    if not isinstance(header, dict) or header.get("format") not in FORMATS:
        raise ErrataError(f"{path} has an unknown patch format", "update errata")
    kind = "weight" if header["format"] == 1 else header.get("kind")
    if not isinstance(kind, str) or kind not in EDIT_KINDS:
        raise ErrataError(
            f"{path} is a patch of unknown kind: {kind!r:.40}",
            f"known kinds: {', '.join(EDIT_KINDS)}; update errata",
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ErrataError(
                f"{path} contains non-finite values in {name}", "make the patch again"
            )
    found = edit_kind(kind)
    state = {"format": header.pop("format")}
    if state["format"] == 2:
        del header["kind"]
    state.update({name: header.pop(name, None) for name in found.state_fields})
    return found.read(tensors, state, Provenance.of(header), str(path))


def edit_kind(kind: str) -> type[Edit]:
    """Return the class of a kind in `EDIT_KINDS`."""
    module, _, name = EDIT_KINDS[kind].partition(":")
    found: type[Edit] = getattr(import_module(module), name)
    return found
