"""The names of `weight_patch`, `update` and `base` as one module; `Patch` is `WeightPatch`."""

from errata.patches.base import Base, Provenance
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch, add, change_lost, keeping, restore, write

Patch = WeightPatch

__all__ = [
    "Base",
    "Patch",
    "Provenance",
    "Update",
    "add",
    "change_lost",
    "keeping",
    "restore",
    "write",
]
