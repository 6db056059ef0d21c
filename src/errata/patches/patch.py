"""A patch: edits as a small file that can be applied, taken back, stacked and shared.

Per weight it holds Δ = R A, with R: (d_out, n) what the weight shall say in addition and
A: (n, d_in) which inputs fetch it, and K: (d_in, n), the keys that were edited. Solving happens
in float64, R and A are float32, and this module alone casts to the model's dtype, once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason, write_safetensors
from errata.core.settings import Settings
from errata.data.request import EditRequest
from errata.models.families import oriented, weight_of
from errata.models.identity import tensor_hash

FORMAT = 1  # of the file
NO_PATCH = "a patch is a .safetensors file that errata wrote; copy one that was cut short again"


@dataclass(frozen=True, eq=False)
class Update:
    """The change of one weight: Δ = R A, or Δ itself once that is smaller."""

    R: Tensor | None
    """(d_out, n), float32; None when `A` holds Δ itself, (d_out, d_in)."""
    A: Tensor
    """(n, d_in), float32."""
    K: Tensor
    """(d_in, m), float32: the edited keys; once there are more, d_in columns with the same K Kᵀ."""

    @classmethod
    def of(cls, R: Tensor, A: Tensor, K: Tensor) -> Update:
        """Build from factors of any float dtype, in the form that takes least room."""
        d_out, n, d_in = R.shape[0], A.shape[0], A.shape[1]
        if K.shape[1] > d_in:
            K = torch.linalg.qr(K.double().T, mode="r").R.T
        update = cls(R.float(), A.float(), K.float())
        return cls(None, update.delta(), update.K) if n * (d_out + d_in) > d_out * d_in else update

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return (self.A if self.R is None else self.R).shape[0], self.A.shape[1]

    def delta(self) -> Tensor:
        """Return Δ: (d_out, d_in), float32."""
        return self.A if self.R is None else (self.R.double() @ self.A.double()).float()

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by letter."""
        held = {"A": self.A, "K": self.K}
        return held if self.R is None else {"R": self.R, **held}


class Base(Settings):
    """The model that a patch was made for."""

    name: str
    """The name or path it was loaded by."""
    model_type: str
    """Its `config.model_type`."""
    weights: str
    """Hash over its stored weights (see `identity`)."""


class Provenance(Settings):
    """Where a patch comes from and how to make it again."""

    title: ClassVar[str] = "the patch's own record"
    base: Base
    """The model that it was made for."""
    method: str
    """The editing method's name."""
    settings: Mapping[str, Any]
    """All settings of the method."""
    requests: tuple[EditRequest, ...]
    """What was asked for."""
    prefixes: tuple[str, ...] = ()
    """The context prefixes that were used."""
    parents: tuple[str, ...] = ()
    """Digests of the patches that were applied when this one was made, in order."""
    weights: Mapping[str, str] = Field(default_factory=dict)
    """Hash of each edited weight as the base has it."""
    moments: Mapping[str, str] = Field(default_factory=dict)
    """Digest of the second moment that was used, per block."""
    losses: tuple[float, ...] = ()
    """Last loss of the value search, per request."""
    notes: tuple[str, ...] = ()
    """What a reader should know: warnings, ranks, fallbacks."""
    versions: Mapping[str, str] = Field(default_factory=dict)
    """Versions of errata, torch and transformers."""
    command: str | None = None
    """A command that makes the patch again."""


@dataclass(frozen=True, eq=False)
class Patch:
    """Updates per weight, with their provenance."""

    updates: Mapping[str, Update]
    provenance: Provenance

    def __eq__(self, other: object) -> bool:
        """Two patches are equal when every number and all provenance are."""
        return isinstance(other, Patch) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        """Tell what was edited and where, not every number."""
        edits, method = len(self.provenance.requests), self.provenance.method
        return f"Patch({self.digest[:12]}: {edits} edits by {method})"

    @cached_property
    def digest(self) -> str:
        """Hash over content and provenance: the patch's own name."""
        digest = hashlib.sha256(self._header().encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all; return its path."""
        write_safetensors(Path(path), self._tensors(), {"errata": self._header()})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch; a file that is missing, damaged or something else is an `ErrataError`."""
        try:
            with safe_open(path, framework="pt") as file:
                header = parse_json((file.metadata() or {}).get("errata", ""))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise ErrataError(
                f"there is no patch at {path}", "`errata ls patches` lists those you have"
            ) from None
        except (OSError, SafetensorError, ValueError, OverflowError) as error:
            raise ErrataError(f"{path} is not a patch: {reason(error)}", NO_PATCH) from None
        if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
            raise ErrataError(f"{path} is a patch of another format", "update errata")
        updates, provenance = _updates(tensors, str(path)), Provenance.of(header)
        if other := set(updates) ^ set(provenance.weights or updates):
            raise ErrataError(
                f"{path} was not made for the weights in it: {', '.join(sorted(other))}",
                "were they renamed? make the patch again",
            )
        return cls(updates, provenance)

    @contextmanager
    def applied(
        self, model: PreTrainedModel, *, allow_base: bool = False
    ) -> Iterator[PreTrainedModel]:
        """Apply the patch for the time of a `with` block; every weight comes back bit for bit."""
        if not allow_base:
            self.check_weights(model)
        with keeping(model, self.updates) as originals:
            write(model, originals, [self])
            yield model

    def check_weights(self, model: PreTrainedModel) -> None:
        """Raise `ErrataError` unless the weights to be edited are those the patch was made on."""
        for name, expected in self.provenance.weights.items():
            _, parameter = weight_of(model, name)
            if tensor_hash(parameter) != expected:
                raise ErrataError(
                    f"this patch was made for another model: {self.provenance.base.name} "
                    f"({name} differs)",
                    "load the model it was made for",
                    "to apply it all the same, say --allow-base (in Python: allow_base=True)",
                )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{letter}": tensor
            for name, update in self.updates.items()
            for letter, tensor in update.tensors().items()
        }

    def _header(self) -> str:
        told = {"format": FORMAT, **self.provenance.model_dump(mode="json")}
        return json.dumps(told, sort_keys=True)


def _updates(tensors: Mapping[str, Tensor], path: str) -> dict[str, Update]:
    """Put a file's tensors together to updates; raises `ErrataError` when they do not fit."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        weight, _, letter = name.rpartition(".")
        if letter not in ("R", "A", "K") or tensor.dtype != torch.float32 or tensor.ndim != 2:
            raise ErrataError(
                f"{path} holds {name}, which is no part of a patch", "the file is damaged"
            )
        if not tensor.isfinite().all():
            raise ErrataError(
                f"{path} holds numbers that are not finite in {name}", "make the patch again"
            )
        parts.setdefault(weight, {})[letter] = tensor
    for weight, held in parts.items():
        whole = {"A", "K"} <= set(held) and held["K"].shape[0] == held["A"].shape[1]
        if not whole or ("R" in held and held["R"].shape[1] != held["A"].shape[0]):
            raise ErrataError(
                f"{path}: the parts of {weight} do not fit together", "the file is damaged"
            )
    return {name: Update(p.get("R"), p["A"], p["K"]) for name, p in sorted(parts.items())}


@contextmanager
def keeping(model: PreTrainedModel, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Save the named weights, give the saved copies, and put them back when the block ends."""
    originals = {name: weight_of(model, name)[1].detach().clone() for name in names}
    try:
        yield originals
    finally:
        restore(model, originals)


@torch.no_grad()
def add(model: PreTrainedModel, name: str, delta: Tensor) -> None:
    """Add Δ (d_out, d_in) to a weight as it stands."""
    module, parameter = weight_of(model, name)
    wide = torch.promote_types(parameter.dtype, torch.float32)
    parameter.copy_(parameter.to(wide) + oriented(module, delta).to(parameter.device, wide))


def restore(model: PreTrainedModel, originals: Mapping[str, Tensor]) -> None:
    """Put saved weights back, bit for bit."""
    with torch.no_grad():
        for name, original in originals.items():
            weight_of(model, name)[1].copy_(original)


@torch.no_grad()
def write(
    model: PreTrainedModel, originals: Mapping[str, Tensor], patches: Sequence[Patch]
) -> None:
    """Set every weight in `originals` to its original plus all patches, in order, cast once.

    Always computed from the originals, so the result does not depend on how it was reached.
    """
    for name, original in originals.items():
        module, parameter = weight_of(model, name)
        parameter.copy_(_sum(name, module, original, patches))


def _sum(name: str, module: torch.nn.Module, original: Tensor, patches: Sequence[Patch]) -> Tensor:
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    for patch in patches:
        if name in patch.updates:
            update, shape = patch.updates[name], tuple(oriented(module, total).shape)
            if update.shape != shape:  # asked before Δ is made, which could be of any size
                raise ErrataError(
                    f"the patch changes {name} by a matrix {update.shape}, "
                    f"but the model's is {shape}",
                    "the patch was made for another architecture",
                )
            total = total + oriented(module, update.delta()).to(total)
    return total


@torch.no_grad()
def change_lost(
    model: PreTrainedModel, originals: Mapping[str, Tensor], patches: Sequence[Patch]
) -> dict[str, float]:
    """Return, per weight, the share of the wanted change that the model's dtype swallows.

    ‖wanted - realised‖ / ‖wanted‖: about 0 in float32; a small Δ added to a bfloat16 weight
    can lose most of itself.
    """
    lost = {}
    for name, original in originals.items():
        module, parameter = weight_of(model, name)
        total = _sum(name, module, original, patches)
        wanted, realised = total - original.to(total), parameter.to(total) - original.to(total)
        size = float(wanted.norm())
        lost[name] = float((wanted - realised).norm()) / size if size else 0.0
    return lost
