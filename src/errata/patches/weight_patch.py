"""`WeightPatch`: an edit that adds Δ to weights, and how a stack of them is written.

Methods solve in float64, Δ is stored in float32, and only this module casts to the model's dtype,
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError, Hint
from errata.models.families import oriented, weight_of
from errata.patches.base import Edit, Provenance
from errata.patches.update import Update, read_updates


@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch(Edit):
    """Updates by full parameter name, with their provenance."""

    kind: ClassVar[str] = "weight"
    updates: Mapping[str, Update]
    provenance: Provenance

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the changed weights, sorted."""
        return tuple(sorted(self.updates))

    def tensors(self) -> dict[str, Tensor]:
        """Return each update's tensors, named `<weight>.<letter>`."""
        return {
            f"{name}.{letter}": tensor
            for name, update in self.updates.items()
            for letter, tensor in update.tensors().items()
        }

    def header(self) -> dict[str, Any]:
        """Return the file's format: 1 if that can represent the patch, which preserves digests."""
        if all(update.first_format for update in self.updates.values()):
            return {"format": 1}
        return {"format": 2, "kind": self.kind}

    @classmethod
    def read(
        cls,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        provenance: Provenance,
        path: str,
    ) -> Self:
        """Build a patch from a file's tensors."""
        updates = read_updates(tensors, path, first=state["format"] == 1)
        if other := set(updates) ^ set(provenance.weights or updates):
            raise ErrataError(
                f"the weights in {path} differ from those in its provenance: "
                f"{', '.join(sorted(other))}",
                "were they renamed? make the patch again",
            )
        return cls(updates, provenance)

    def keys_of(self, name: str) -> Tensor:
        """Return the edit keys K (d_in, m) of a weight; raises `ErrataError` if it has none."""
        K = self.updates[name].K
        if K is None:
            raise ErrataError(
                f"the patch {self.digest[:12]} ({self.provenance.method}) has no edit keys "
                f"for {name}, which are needed here",
                "omit the patch, or use a method or setting that needs no keys",
            )
        return K

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Apply the patch within a `with` block; restores every weight bit for bit."""
        with keeping(model, self.updates) as originals:
            write(model, originals, [self])
            yield


def weight_patches(patches: Iterable[Edit]) -> list[WeightPatch]:
    """Return those edits that are weight patches, in order."""
    return [patch for patch in patches if isinstance(patch, WeightPatch)]


def check_range(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raise `ErrataError` if one of the weights is not finite."""
    for name in names:
        if not torch.stack(torch.aminmax(weight_of(model, name)[1])).isfinite().all():
            raise ErrataError(
                f"the patch makes {name} overflow in {model.dtype}",
                Hint(
                    "load the model in a wider dtype: dtype='float32' or 'bfloat16'",
                    "load the model in a wider dtype: --dtype float32 or bfloat16",
                ),
            )


@contextmanager
def keeping(model: PreTrainedModel, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Copy weights, yield the copies by name, and restore the weights at the end."""
    originals = copied(model, names, {})
    try:
        yield originals
    finally:
        restore(model, originals)


def copied(
    model: PreTrainedModel, names: Iterable[str], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the originals in `known` and those of `names`, one copy for all tied weights.

    A weight that is tied to one in `known` shares its original.
    """
    found = dict(known)
    held = {id(weight_of(model, name)[1]): original for name, original in known.items()}
    for name in names:
        parameter = weight_of(model, name)[1]
        if id(parameter) not in held:
            held[id(parameter)] = parameter.detach().clone()
        found[name] = held[id(parameter)]
    return found


@torch.no_grad()
def add(model: PreTrainedModel, name: str, delta: Tensor) -> None:
    """Add Δ, in the layout of `Update`, to the current value of a weight."""
    module, parameter = weight_of(model, name)
    wide = torch.promote_types(parameter.dtype, torch.float32)
    parameter.copy_(parameter.to(wide) + oriented(module, delta).to(parameter.device, wide))


def restore(model: PreTrainedModel, originals: Mapping[str, Tensor]) -> None:
    """Restore saved weights bit for bit."""
    with torch.no_grad():
        for name, original in originals.items():
            weight_of(model, name)[1].copy_(original)


@torch.no_grad()
def write(
    model: PreTrainedModel, originals: Mapping[str, Tensor], patches: Sequence[WeightPatch]
) -> None:
    """Set every weight in `originals` to its original plus all patches in order, cast once.

    The sum always starts from the originals, so it does not depend on what was applied before.
    """
    for names in _tied(model, originals):
        _, parameter = weight_of(model, names[0])
        parameter.copy_(_sum(model, names, originals[names[0]], patches))


def _tied(model: PreTrainedModel, names: Iterable[str]) -> list[list[str]]:
    """Group the names that share one parameter."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(id(weight_of(model, name)[1]), []).append(name)
    return list(groups.values())


def _sum(
    model: PreTrainedModel, names: Sequence[str], original: Tensor, patches: Sequence[WeightPatch]
) -> Tensor:
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    for patch in patches:
        for name in sorted(set(names) & set(patch.updates)):
            update, module = patch.updates[name], weight_of(model, name)[0]
            shape = tuple(oriented(module, total).shape)
            if update.shape != shape:  # checked before Δ is built, which may be of any size
                raise ErrataError(
                    f"the patch has a Δ of shape {update.shape} for {name}, "
                    f"but the weight's shape is {shape}",
                    "the patch was made for another architecture",
                )
            total = total + oriented(module, update.delta()).to(total)
    return total


@torch.no_grad()
def change_lost(
    model: PreTrainedModel, originals: Mapping[str, Tensor], patches: Sequence[WeightPatch]
) -> dict[str, float]:
    """Return, per weight, the share of the change lost to rounding in the model's dtype.

    ‖wanted - realised‖ / ‖wanted‖: about 0 in float32; most of a small Δ can be lost when it is
    added to a bfloat16 weight.
    """
    lost = {}
    for names in _tied(model, originals):
        original, parameter = originals[names[0]], weight_of(model, names[0])[1]
        total = _sum(model, names, original, patches)
        wanted, realised = total - original.to(total), parameter.to(total) - original.to(total)
        size = float(wanted.norm())
        share = float((wanted - realised).norm()) / size if size else 0.0
        lost.update(dict.fromkeys(names, share))
    return lost
