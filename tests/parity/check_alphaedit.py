"""Comparison of AlphaEdit with what was recorded: batches one after the other.

The first edit stays in the model while the second is made, and its keys reach the second
through its patch. The null space is the recorded one, or cut by us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.methods import METHODS, ClosedForm
from errata.methods.closed_form.keys import keys_of
from errata.methods.closed_form.rewrite import Rewrite
from errata.patches.base import Base, Provenance
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.statistics.null_space import NullSpace
from errata.statistics.second_moment import SecondMoment
from parity.check_editing import hold_blocks, hold_search, searched
from parity.recorded import Part, Recorded
from parity.reference_ids import reference_rewrite, request_of, settings_of

TOPIC = "alphaedit"


@dataclass(frozen=True)
class GivenNullSpace(SecondMoment):
    """A second moment whose null space was cut elsewhere."""

    projector: Tensor | None = None

    def null_space(self, threshold: float, relative: bool = False) -> NullSpace:
        """Return the given one, whatever the threshold."""
        assert self.projector is not None
        return NullSpace.from_projector(self.projector)


def alphaedit_of(settings: Mapping[str, Any]) -> ClosedForm:
    """Return the method with recorded settings."""
    hparams = settings["hparams"]
    return METHODS["alphaedit"](
        **settings_of(hparams, settings["context_templates"], hparams["v_loss_layer"]),
        null_space_threshold=settings["nullspace_threshold"],
        ridge=hparams["L2"],
    )


def check_alphaedit(recorded: Recorded, given: bool) -> None:
    """All batches: iterations, losses, z, and per block keys before and after, cur_z and ΔW."""
    settings, tensors = recorded.json(TOPIC), recorded.tensors(TOPIC)
    method, moments = alphaedit_of(settings), recorded.moments()
    for block in method.edited_blocks:
        P = tensors[f"layer{block}.P"]
        hold_null_space(recorded, settings, moments[block], block, P)
        if given:
            moments[block] = GivenNullSpace(
                moments[block].matrix, moments[block].count, projector=P
            )
    assert settings["batches"], "alphaedit.json has no batches"
    patches: list[WeightPatch] = []
    with ExitStack() as stack:
        for name, batch in settings["batches"].items():
            part = Part(tensors.tensors, f"{name}.", tensors.taken)
            patch, rewrites = edit_batch(recorded, settings, method, moments, batch, part, patches)
            stack.enter_context(patch.applied(recorded.model, allow_base=True))
            hold_keys_after(recorded, method, part, rewrites, patch.updates)
            patches.append(patch)
    for block in method.edited_blocks:
        if f"final.layer{block}.cache_c" in tensors:
            held = [patch.updates[recorded.family.weight_name(block)].K for patch in patches]
            memory = sum(K @ K.T for K in held)
            expected = tensors[f"final.layer{block}.cache_c"]
            recorded.hold(TOPIC, "key", f"cache_c of block {block}", memory, expected)
    tensors.assert_all_taken()


def hold_null_space(
    recorded: Recorded,
    settings: Mapping[str, Any],
    moment: SecondMoment,
    block: int,
    expected: Tensor,
) -> None:
    """Compare P as we cut it: its rank, the singular values beside the cut, and itself."""
    space, numbers = (
        moment.null_space(settings["nullspace_threshold"]),
        settings["projector"][str(block)],
    )
    assert space.dimension == numbers["rank"], (
        f"block {block}: {space.dimension} not {numbers['rank']}"
    )
    assert space.width == numbers["dim"]
    beside = [space.above, space.below]
    theirs = [numbers["nearest_above"], numbers["nearest_below"]]
    recorded.hold_each(TOPIC, "P", "singular values", beside, theirs)
    unit = torch.eye(numbers["dim"], dtype=torch.float64)
    recorded.hold(TOPIC, "P", f"layer{block}.P", space.project(unit), expected)


def edit_batch(
    recorded: Recorded,
    settings: Mapping[str, Any],
    method: ClosedForm,
    moments: Mapping[int, SecondMoment],
    batch: Mapping[str, Any],
    tensors: Part,
    earlier: Sequence[WeightPatch],
) -> tuple[WeightPatch, list[Rewrite]]:
    """Make one batch's patch on the model as it stands, comparing on the way."""
    model, templates = recorded.model, settings["context_templates"]
    rewrites = [
        reference_rewrite(recorded.tokenizer, record, templates, method.position, "bos")
        for record in batch["requests"]
    ]
    targets = searched(recorded, method, rewrites)
    traces = [f"loss_trace{j}" for j in range(len(rewrites))]
    hold_search(recorded, TOPIC, tensors, traces, targets, batch)
    kind = "z on an edited model" if earlier else "z"
    recorded.hold(TOPIC, kind, f"{tensors.prefix}z", targets.values, tensors["z"])
    updates = method.updates(model, rewrites, targets, moments, earlier)
    hold_blocks(recorded, TOPIC, tensors, method, rewrites, updates, batch["delta_fro"])
    provenance = Provenance(
        base=Base(name=recorded.name, model_type=model.config.model_type, weights=""),
        method=method.name,
        settings=method.model_dump(mode="json"),
        requests=tuple(request_of(record) for record in batch["requests"]),
    )
    return WeightPatch(updates, provenance), rewrites


def hold_keys_after(
    recorded: Recorded,
    method: ClosedForm,
    tensors: Part,
    rewrites: Sequence[Rewrite],
    updates: Mapping[str, Update],
) -> None:
    """Compare keys on the edited model, and with them those that the patch hands on."""
    for block in method.edited_blocks:
        expected = tensors[f"layer{block}.keys_after_edit"]
        after, _ = keys_of(recorded.model, rewrites, block)
        recorded.hold(
            TOPIC, "key", f"{tensors.prefix}layer{block}.keys_after_edit", after, expected
        )
        K = updates[recorded.family.weight_name(block)].K
        recorded.hold(TOPIC, "key", f"K of block {block}", K @ K.T, expected.T @ expected)
