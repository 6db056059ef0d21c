"""One edit of every kind and form, made by test methods of a few lines each.

`edits_of(edited)` makes them for a model: weight patches of random numbers, a codebook of one
entry read off a forward pass, and a fact put before the prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, record
from errata.models.identity import tensor_hash
from errata.models.tokens import encode
from errata.patches.base import Base, Edit, Provenance
from errata.patches.codebook import Codebook
from errata.patches.edited_model import EditedModel
from errata.patches.module_patch import ModulePatch
from errata.patches.prompt_patch import PromptPatch
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from laws.bench import random_patch
from tiny import FACTS


def provenance(edited: EditedModel, weights: tuple[str, ...] = (), asked: int = 1) -> Provenance:
    return Provenance(
        base=Base(**edited.base.model_dump()),
        method="none",
        requests=FACTS[:asked],
        weights={name: tensor_hash(edited.model.get_parameter(name)) for name in weights},
    )


def noise(like: Tensor, seed: int) -> Tensor:
    return 0.1 * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def named(edited: EditedModel, *parts: str) -> str:
    """Return the first parameter whose name holds one of the parts."""
    names = (name for name, _ in edited.model.named_parameters())
    return next(name for name in names if any(part in name for part in parts))


def keyless(edited: EditedModel) -> WeightPatch:
    """Low-rank, of an MLP output matrix, without keys."""
    updates = {
        name: Update(update.R, update.A) for name, update in random_patch(edited, 3).updates.items()
    }
    return WeightPatch(updates, provenance(edited, tuple(updates), asked=0))


def dense(edited: EditedModel) -> WeightPatch:
    """Dense, of the embedding (tied to the head in some families) and of a norm's gain."""
    vector = named(edited, "norm", "ln")
    names = (f"{family_of(edited.model).embedding}.weight", vector)
    updates = {
        name: Update.of_delta(noise(edited.model.get_parameter(name), seed))
        for seed, name in enumerate(names)
    }
    return WeightPatch(updates, provenance(edited, names))


def sparse(edited: EditedModel) -> WeightPatch:
    """A few entries of the embedding and of an attention bias or matrix."""
    attention = named(edited, "attn", "attention")
    names = (f"{family_of(edited.model).embedding}.weight", attention)
    updates = {}
    for seed, name in enumerate(names):
        delta = noise(edited.model.get_parameter(name), seed + 7)
        if "Conv1D" in type(edited.model.get_submodule(name.rpartition(".")[0])).__name__:
            delta = delta.T
        updates[name] = Update.of_delta(torch.where(delta > 0.15, delta, 0.0))
    return WeightPatch(updates, provenance(edited, names))


def one_entry(edited: EditedModel) -> ModulePatch:
    """Replace the output of block 2's MLP where its input is that of the fact's last token."""
    family, model = family_of(edited.model), edited.model
    path = f"{family.blocks}.2.{family.block_mlp}"
    module = model.get_submodule(path)
    ids = torch.tensor([encode(edited.tokenizer, FACTS[0].text).ids])
    modes = {each: each.training for each in model.modules()}
    model.eval()
    with torch.no_grad():
        inputs, out = record(model, ids, [Site(module, "input"), Site(module, "output")])
    for each, mode in modes.items():
        each.training = mode
    key, value = inputs[0, -1], first_tensor(out)[0, -1]
    book = Codebook(key[None].float(), -3 * value[None].float() + 1, torch.tensor([1e-2]))
    return ModulePatch({path: book}, provenance(edited))


def wide(edit: Edit) -> Edit:
    """Return a module patch with keys that are always near; any other edit as it is."""
    if not isinstance(edit, ModulePatch):
        return edit
    books = {
        path: Codebook(book.keys, book.values, torch.full_like(book.radii, 1e4))
        for path, book in edit.modules.items()
    }
    return ModulePatch(books, edit.provenance)


def fact_before(edited: EditedModel) -> PromptPatch:
    """Put the fact before the prompt."""
    fact = FACTS[0]
    return PromptPatch(f"New fact: {fact.text}{fact.answer}.\n{{prompt}}", provenance(edited))


EDITS: dict[str, Callable[[EditedModel], Edit]] = {
    "low-rank": lambda edited: random_patch(edited, 0),
    "keyless": keyless,
    "dense": dense,
    "sparse": sparse,
    "module": one_entry,
    "prompt": fact_before,
}


def edits_of(edited: EditedModel) -> dict[str, Edit]:
    """Return one edit of every kind for a model without edits."""
    return {name: make(edited) for name, make in EDITS.items()}
