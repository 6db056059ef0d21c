"""Comparisons of ROME and MEMIT with what was recorded, case by case.

The methods are built from the recorded hyperparameters and fed the reference's token ids;
everything behind the ids is the package's own way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import plain
from errata.methods import METHODS, ClosedForm
from errata.methods.closed_form.keys import bare_rows, keys_of
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.target_search import Targets
from errata.models.families import oriented
from errata.models.hooks import Site
from errata.models.layerwise import read_at
from errata.patches.update import Update
from errata.patches.weight_patch import add, keeping
from parity.recorded import Part, Recorded
from parity.reference_ids import (
    Repair,
    as_searched,
    reference_rewrite,
    settings_of,
)

REPAIRS: dict[str, Repair] = {"rome": "none", "rome_bosfixed": "bos"}
"""What the code behind a file takes off a target; MEMIT's takes BOS."""


def check_rome(recorded: Recorded, topic: str, case: str) -> None:
    """ROME of one request: iterations, losses, u, v and ΔW."""
    settings, tensors = recorded.json(topic), recorded.tensors(topic, f"{case}.")
    found = settings["cases"][case]
    hparams = hparams_of(settings, case, recorded.json("rome"))
    templates = [settings["context_templates"]]
    method = METHODS["rome"](
        **settings_of(hparams, templates, loss_block=None),
        second_moment=hparams["mom2_adjustment"],
    )
    record = found["request"]
    rewrites = [
        reference_rewrite(recorded.tokenizer, record, templates, method.position, REPAIRS[topic])
    ]
    targets = searched(recorded, method, rewrites)
    hold_search(recorded, topic, tensors, ["loss_trace"], targets, found)
    (block,) = method.edited_blocks
    name = recorded.family.weight_name(block)
    assert found.get("weight", name) == name, (found["weight"], name)
    update = method.updates(recorded.model, rewrites, targets, recorded.moments())[name]
    assert update.R is not None
    # A = uᵀ / (u·k₀) and R = v (u·k₀); u points the way that k̄ does.
    length = update.A.norm() * torch.sign((update.A @ update.K).squeeze())
    kind = "u" if hparams["mom2_adjustment"] else "u without second moment"
    recorded.hold(topic, kind, f"{case}.u", update.A[0] / length, tensors["u"])
    recorded.hold(topic, "v", f"{case}.v", update.R[:, 0] * length, tensors["v"])
    for scalar, ours in (
        ("u_norm", (update.A / length).norm()),
        ("v_norm", (update.R * length).norm()),
        ("delta_fro", update.delta().norm()),
    ):
        if scalar in found:
            recorded.hold(topic, "v", scalar, ours, found[scalar])
    if "delta_W" in tensors:
        hold_delta(recorded, topic, f"{case}.delta_W", block, update, tensors["delta_W"])
    tensors.assert_all_taken()


def check_memit(recorded: Recorded, topic: str, case: str) -> None:
    """MEMIT of one batch: iterations, losses, z, and per block keys, cur_z and ΔW."""
    settings, tensors = recorded.json(topic), recorded.tensors(topic, f"{case}.")
    found, templates = settings["cases"][case], settings["context_templates"]
    hparams, records = found["hparams"], records_of(recorded, found)
    assert [record["case_id"] for record in records] == found["case_ids"], case
    method = METHODS["memit"](
        **settings_of(hparams, templates, hparams["v_loss_layer"]),
        moment_weight=hparams["mom2_update_weight"],
    )
    repair: Repair = "word" if case.startswith("spfixed.") else "bos"
    rewrites = [
        reference_rewrite(recorded.tokenizer, record, templates, method.position, repair)
        for record in records
    ]
    targets = searched(recorded, method, rewrites)
    traces = [f"loss_trace{j}" for j in range(len(records))]
    hold_search(recorded, topic, tensors, traces, targets, found)
    expected = recorded_values(recorded, topic, case, tensors)
    recorded.hold(topic, "z", f"{case}.z", targets.values, expected)
    updates = method.updates(recorded.model, rewrites, targets, recorded.moments())
    hold_blocks(recorded, topic, tensors, method, rewrites, updates, found["delta_fro"])
    tensors.assert_all_taken()


def hparams_of(
    settings: Mapping[str, Any], case: str, rome: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return a case's hyperparameters; a repaired run repeats those of the run as it was."""
    found = settings["cases"][case]
    return found["hparams"] if "hparams" in found else rome["cases"][case]["hparams"]


def records_of(recorded: Recorded, found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the requests of a batch: its own, or those of the inputs that it names."""
    if "requests" in found:
        return found["requests"]
    known = {record["case_id"]: record for record in recorded.inputs("requests")["memit"]}
    return [known[number] for number in found["case_ids"]]


def recorded_values(recorded: Recorded, topic: str, case: str, tensors: Part) -> Tensor:
    """Return a case's z; where it has none, the first rows of the batch that it is the start of."""
    if "z" in tensors:
        return tensors["z"]
    cases = recorded.json(topic)["cases"]
    found = cases[case]
    ids, hparams = found["case_ids"], found["hparams"]
    for other, longer in cases.items():
        held = recorded.tensors(topic, f"{other}.")
        if "z" in held and longer["case_ids"][: len(ids)] == ids and longer["hparams"] == hparams:
            return held["z"][: len(ids)]
    raise AssertionError(f"there is no z for {case}")


def searched(recorded: Recorded, method: ClosedForm, rewrites: Sequence[Rewrite]) -> Targets:
    """Search the target values as the package does.

    The reference's ids can put a target before the edited token (defect L2 behind a position
    after the subject). No ids of ours do, and the package's search has no place for them: such
    requests are searched the plain way, which `test_own_ids` holds the package's against.
    """
    model, block, rewrites = (
        recorded.model,
        method.edited_blocks[-1],
        list(map(as_searched, rewrites)),
    )
    rows = [row for rewrite in rewrites for row in rewrite.rows]
    if all(len(row.ids) - len(row.targets) >= row.position for row in rows):
        return method.find_targets(model, rewrites)
    found = [plain.search(model, row, block, method.place, method.search) for row in rewrites]
    initial, delta = (torch.stack([one[i] for one in found]) for i in (0, 1))
    return Targets(initial, delta, tuple(one.losses for one in found))


def hold_search(
    recorded: Recorded,
    topic: str,
    tensors: Part,
    traces: Sequence[str],
    targets: Targets,
    found: Mapping[str, Any],
) -> None:
    """Compare the number of evaluations, the loss rows and the lengths of what was found."""
    counts, expected = [len(trace) for trace in targets.losses], as_list(found["n_iterations"])
    assert counts == expected, f"{recorded.name}, {topic}: {counts} evaluations, not {expected}"
    if "n_updates" in found:
        assert [count - 1 for count in counts] == as_list(found["n_updates"])
    for name, trace in zip(traces, targets.losses, strict=True):
        if name in tensors:
            recorded.hold_trace(topic, f"{tensors.prefix}{name}", trace, tensors[name])
    if "final_loss" in found:
        last = [trace[-1, 0] for trace in targets.losses]
        for ours, theirs in zip(last, as_list(found["final_loss"]), strict=True):
            recorded.hold(topic, "trace", "final_loss", ours, theirs, floor=0.02)
    if "init_norm" in found:
        initial, delta = targets.initial.norm(dim=1), targets.delta.norm(dim=1)
        recorded.hold_each(topic, "z", "‖h₀‖", initial.tolist(), found["init_norm"])
        lengths = zip(delta, found["z_minus_init_norm"], found["init_norm"], strict=True)
        for ours, theirs, scale in lengths:  # recorded as z - h₀, with the rounding of z
            recorded.hold(topic, "z", "‖δ‖", ours, theirs, floor=scale)


def as_list(value: Any) -> list[Any]:
    """Return a value of one request like those of many."""
    return value if isinstance(value, list) else [value]


@torch.no_grad()
def hold_blocks(
    recorded: Recorded,
    topic: str,
    tensors: Part,
    method: ClosedForm,
    rewrites: Sequence[Rewrite],
    updates: Mapping[str, Update],
    sizes: Mapping[str, float],
) -> None:
    """Write block by block and compare, at each, keys, current values and the update."""
    model, family = recorded.model, recorded.family
    last = Site(family.block(model, method.edited_blocks[-1]), "output")
    with keeping(model, updates):
        for block in method.edited_blocks:
            update = updates[family.weight_name(block)]
            keys, _ = keys_of(model, rewrites, block)
            (now,) = read_at(model, bare_rows(rewrites), [last])
            for name, value in (("keys", keys), ("cur_z", now)):
                if f"layer{block}.{name}" in tensors:
                    what = f"{tensors.prefix}layer{block}.{name}"
                    recorded.hold(topic, "key", what, value, tensors[f"layer{block}.{name}"])
            # What the patch keeps of the keys, in whatever form.
            kept = update.K @ update.K.T
            recorded.hold(topic, "key", f"K of block {block}", kept, keys.T @ keys)
            size = update.delta().norm()
            recorded.hold(topic, "delta_W", f"‖ΔW‖ of block {block}", size, sizes[str(block)])
            if f"layer{block}.delta_W" in tensors:
                what = f"{tensors.prefix}layer{block}.delta_W"
                expected = tensors[f"layer{block}.delta_W"]
                hold_delta(recorded, topic, what, block, update, expected)
            add(model, family.weight_name(block), update.delta())


def hold_delta(
    recorded: Recorded, topic: str, what: str, block: int, update: Update, expected: Tensor
) -> None:
    """Compare Δ in the layout of the weight itself."""
    write = recorded.family.mlp_out(recorded.model, block)
    delta = oriented(write, update.delta())
    assert delta.shape == write.weight.shape, (
        f"{what}: {tuple(delta.shape)} does not fit the weight"
    )
    recorded.hold(topic, "delta_W", what, delta, expected)
