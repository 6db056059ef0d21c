"""`WeightPatch`: an edit that adds Δ to weights, and how stacks of them are written.

Solving happens in float64, Δ is stored in float32, and this module alone casts to the model's
dtype, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.models.families import oriented, weight_of
from errata.patches.base import Edit, Provenance
from errata.patches.update import Update, read_updates


@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch(Edit):
    """Updates by the weight's full parameter name, with their provenance."""

    kind: ClassVar[str] = "weight"
    updates: Mapping[str, Update]
    provenance: Provenance

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the weights that change, ascending."""
        return tuple(sorted(self.updates))

    def tensors(self) -> dict[str, Tensor]:
        """Return each update's tensors, named `<weight>.<letter>`."""
        return {
            f"{name}.{letter}": tensor
            for name, update in self.updates.items()
            for letter, tensor in update.tensors().items()
        }

    def header(self) -> dict[str, Any]:
        """Return the file's format: 1 where that can hold the patch, so that digests last."""
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
                f"{path} was not made for the weights in it: {', '.join(sorted(other))}",
                "were they renamed? make the patch again",
            )
        return cls(updates, provenance)

    def keys_of(self, name: str) -> Tensor:
        """Return the edit keys K (d_in, m) of a weight; raises `ErrataError` where it has none."""
        K = self.updates[name].K
        if K is None:
            raise ErrataError(
                f"the patch {self.digest[:12]} ({self.provenance.method}) holds no edit keys "
                f"for {name}, and they are needed here",
                "leave the patch out, or use a method or setting that needs no keys",
            )
        return K

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Write the patch for the time of a `with` block; every weight comes back bit for bit."""
        with keeping(model, self.updates) as originals:
            write(model, originals, [self])
            yield


def weight_patches(patches: Iterable[Edit]) -> list[WeightPatch]:
    """Return the weight patches among edits, in order."""
    return [patch for patch in patches if isinstance(patch, WeightPatch)]


def check_range(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raise `ErrataError` where a named weight is no longer finite."""
    for name in names:
        if not torch.stack(torch.aminmax(weight_of(model, name)[1])).isfinite().all():
            raise ErrataError(
                f"the patch makes {name} infinite in {model.dtype}",
                "load the model in a wider dtype: --dtype float32, or bfloat16",
            )


@contextmanager
def keeping(model: PreTrainedModel, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Copy the named weights, yield the copies by name, and restore the weights at the end."""
    originals = copied(model, names, {})
    try:
        yield originals
    finally:
        restore(model, originals)


def copied(
    model: PreTrainedModel, names: Iterable[str], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return `known` originals with those of `names` added, one copy for each tied weight.

    A weight that is tied to one in `known`, under another name, has that one's original.
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
    """Add Δ, in the layout of `Update`, to a weight's current value."""
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
                    f"the patch changes {name} by a matrix {update.shape}, "
                    f"but the model's is {shape}",
                    "the patch was made for another architecture",
                )
            total = total + oriented(module, update.delta()).to(total)
    return total


@torch.no_grad()
def change_lost(
    model: PreTrainedModel, originals: Mapping[str, Tensor], patches: Sequence[WeightPatch]
) -> dict[str, float]:
    """Return, per weight, the share of the change that rounding to the model's dtype loses.

    ‖wanted - realised‖ / ‖wanted‖: about 0 in float32; a small Δ added to a bfloat16 weight
    can lose most of itself.
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
