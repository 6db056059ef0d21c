"""Δ = R A for every edited weight, block by block upwards, batch by batch.

Each block's keys are read with the blocks below it edited, and a batch is written before the
next one is read; the weights are restored at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.methods.closed_form.keys import Keys, bare_rows
from errata.methods.closed_form.residual import output_wanted
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.target_search import Targets
from errata.models.families import family_of
from errata.models.hooks import frozen
from errata.models.layerwise import LayerwiseReader
from errata.models.precision import solving_device, widened
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch, add, keeping
from errata.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    from errata.methods.closed_form.driver import ClosedForm


def write_blocks(
    method: ClosedForm,
    model: PreTrainedModel,
    rewrites: Sequence[Rewrite],
    targets: Targets,
    moments: Mapping[int, SecondMoment],
    earlier: Sequence[WeightPatch],
) -> dict[str, Update]:
    """Return the update of every edited weight; the model is left as found.

    `earlier` are the patches on the model, whose keys `read` may take into account.
    """
    family = family_of(model)
    names = {block: family.weight_name(block) for block in method.edited_blocks}
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in names.values()}
    limit = method.batch_limit or len(rewrites)
    history = earlier if method.reads_history else ()
    wide = widened(model, method.search.precision)
    with frozen(model), wide, keeping(model, names.values()):
        for start in range(0, len(rewrites), limit):
            batch = range(start, min(start + limit, len(rewrites)))
            chosen, wanted = [rewrites[i] for i in batch], targets.pick(batch).values
            if method.place == "block":
                wanted = output_wanted(model, bare_rows(chosen), wanted, method.edited_blocks[-1])
            readers = Keys(model, chosen), LayerwiseReader(model, bare_rows(chosen))
            for block, name in names.items():
                memory = [p.keys_of(name) for p in history if name in p.updates]
                memory += [K for _, _, K in parts[name]]
                part = _factors(method, model, readers, wanted, block, moments.get(block), memory)
                parts[name].append(part)
                add(model, name, Update.of(*part).delta())
    return {
        name: Update.of(
            torch.cat([R for R, _, _ in held], dim=1),
            torch.cat([A for _, A, _ in held]),
            torch.cat([K for _, _, K in held], dim=1),
        )
        for name, held in parts.items()
    }


def moment_notes(
    method: ClosedForm,
    model: PreTrainedModel,
    updates: Mapping[str, Update],
    moments: Mapping[int, SecondMoment],
) -> list[str]:
    """Return the method's notes on the second moments and keys of all blocks."""
    found = []
    for block, moment in moments.items():
        K = updates[family_of(model).weight_name(block)].K
        assert K is not None
        found += [f"block {block}: {note}" for note in method.notes(moment, K)]
    return found


def _factors(
    method: ClosedForm,
    model: PreTrainedModel,
    readers: tuple[Keys, LayerwiseReader],
    wanted: Tensor,
    block: int,
    moment: SecondMoment | None,
    memory: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return R (d_out, n), A (n, d_in) and K (d_in, n) of one block for one batch.

    `readers` read the keys of its requests, and the hidden states of the bare prompts.
    """
    needed = block in method.moment_blocks
    if moment is None and needed:
        raise ErrataError(
            f"{method.name} needs the second moment of block {block}", "run `errata stats` first"
        )
    device = solving_device(model.device)
    keys, bare = (read.to(device) for read in method.keys(readers[0], block))
    R = method.residual(model, readers[1], wanted.to(device), block)
    held = [K.to(device) for K in memory]
    A = method.read(keys.T, bare.T, moment if needed else None, held)
    return R, A, keys.T
