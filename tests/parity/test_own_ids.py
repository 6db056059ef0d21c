"""Where the recorded results carry a defect, our own answer is held against the plain version.

Ids are those that the package makes for its users: BOS and a lone "▁" are no targets, the
edited position does not depend on the target. `plain` is the algorithm written one request
and one full forward pass at a time; settings are the recorded ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch

import plain
from errata.methods import METHODS, ClosedForm
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.target_search import Targets
from errata.models.families import family_of
from errata.models.tokens import Position, encode
from errata.patches.base import Base, Provenance
from errata.patches.edited_model import EditedModel
from errata.patches.weight_patch import WeightPatch
from parity.check_alphaedit import alphaedit_of
from parity.check_editing import records_of
from parity.recorded import Recorded
from parity.reference_ids import has_lone_word, reference_rewrite, request_of, settings_of

Records = Sequence[Mapping[str, Any]]

AT_MOST = 2
"""Requests of a setting that are searched the plain way, which is slow."""


class Setting(NamedTuple):
    """A method with recorded settings, and requests that were recorded with them."""

    method: ClosedForm
    records: Records


def rome_settings(recorded: Recorded) -> list[Setting]:
    """Return ROME with and without second moment, each with several requests."""
    file = recorded.json("rome")
    templates, found = [file["context_templates"]], {}
    for case in file["cases"].values():
        method = METHODS["rome"](
            **settings_of(case["hparams"], templates, loss_block=None),
            second_moment=case["hparams"]["mom2_adjustment"],
        )
        found.setdefault(method.model_dump_json(), Setting(method, [])).records.append(
            case["request"]
        )
    return list(found.values())


def memit_settings(recorded: Recorded) -> list[Setting]:
    """Return MEMIT in every setting that was recorded: another position, another loss block."""
    found: dict[str, Setting] = {}
    for topic in ("memit", "memit_earlystop"):
        file = recorded.json(topic) if recorded.has(topic) else {"cases": {}}
        for case in file["cases"].values():
            hparams, records = case["hparams"], records_of(recorded, case)
            method = METHODS["memit"](
                **settings_of(hparams, file["context_templates"], hparams["v_loss_layer"]),
                moment_weight=hparams["mom2_update_weight"],
            )
            key = method.model_dump_json() + topic
            if key not in found or len(records) > len(found[key].records):
                found[key] = Setting(method, records)
    return list(found.values())


def target_length(target: Mapping[str, str]) -> int:
    """Return how long a recorded target is, so that one of many tokens can be chosen."""
    return len(target["str"])


def own_rewrites(
    recorded: Recorded, method: ClosedForm, records: Sequence[Mapping[str, Any]]
) -> list[Rewrite]:
    """Encode recorded requests as the package does for its users."""
    requests = [request_of(record) for record in records]
    edited = EditedModel(recorded.model, recorded.tokenizer, "recorded")
    return method.rewrites(edited, requests)


def searched_both_ways(
    recorded: Recorded, method: ClosedForm, rewrites: Sequence[Rewrite], kind: str = "z"
) -> Targets:
    """Search with the package and plainly; compare; return the package's."""
    ours = method.find_targets(recorded.model, rewrites)
    for i, rewrite in enumerate(rewrites):
        block = method.edited_blocks[-1]
        found = plain.search(recorded.model, rewrite, block, method.place, method.search)
        what = f"request {i}"
        assert len(ours.losses[i]) == len(found.losses), f"{what}: other evaluations"
        recorded.hold_trace(f"plain {method.name}", what, ours.losses[i], found.losses)
        value = found.initial + found.delta
        recorded.hold(f"plain {method.name}", kind, what, ours.values[i], value)
    return ours


def test_positions_and_targets(recorded: Recorded) -> None:
    """Every strategy on every recorded prompt; targets begin where the prompt ends."""
    requests = recorded.inputs("requests")["memit"]
    answers = {"target_new": max((row["target_new"] for row in requests), key=target_length)}
    records = [*({**pair, **answers} for pair in recorded.inputs("token_pairs")), *requests]
    method = memit_settings(recorded)[0].method
    prefixes = method.contexts.prefixes or ()
    for where in get_args(Position):
        placed = method.with_values(position=where)
        for record in records:
            request, (rewrite,) = request_of(record), own_rewrites(recorded, placed, [record])
            keys = [row for group in rewrite.keys for row in group]
            for text, row, key in zip(
                plain.texts(request, prefixes), rewrite.rows, keys, strict=True
            ):
                shift = len(text) - len(request.text)
                span = (request.span[0] + shift, request.span[1] + shift)
                expected = plain.position(recorded.tokenizer, text, span, where)
                assert row.position == key.position == expected, (where, text)
                prompt = encode(recorded.tokenizer, text).ids
                whole = encode(recorded.tokenizer, text + request.answer).ids
                assert row.ids + row.targets[-1:] == prompt + row.targets, text
                if whole[: len(prompt)] == prompt:
                    assert whole == prompt + row.targets, text
                assert not has_lone_word(recorded.tokenizer, row.targets), text
                assert not set(row.targets) & set(recorded.tokenizer.all_special_ids), text


def test_memit(recorded: Recorded) -> None:
    moments = recorded.moments()
    for method, records in memit_settings(recorded):
        rewrites = own_rewrites(recorded, method, records[:AT_MOST])
        targets = searched_both_ways(recorded, method, rewrites)
        updates = method.updates(recorded.model, rewrites, targets, moments)
        deltas = plain.edit_blocks(
            recorded.model,
            rewrites,
            targets.values,
            method.edited_blocks,
            lambda K, R, block, weight=method.moment_weight: plain.memit(
                K, R, moments[block].matrix, weight
            ),
        )
        for block, delta in deltas.items():
            ours = updates[recorded.family.weight_name(block)].delta()
            recorded.hold("plain memit", "delta_W", f"block {block}", ours, delta)


def test_rome(recorded: Recorded) -> None:
    """A list of requests is written whole, each on the model that the ones before left."""
    moments, searched = recorded.moments(), {}
    for method, records in rome_settings(recorded):
        rewrites = own_rewrites(recorded, method, records[:AT_MOST])
        search = (method.search, *rewrites)  # the second moment has no part in it
        if search not in searched:
            searched[search] = searched_both_ways(recorded, method, rewrites)
        targets = searched[search]
        (block,) = method.edited_blocks
        C = moments[block].matrix if method.second_moment else None
        delta = plain.edit_ranks(recorded.model, rewrites, targets.values, block, C)
        updates = method.updates(recorded.model, rewrites, targets, moments)
        ours = updates[recorded.family.weight_name(block)].delta()
        recorded.hold("plain rome", "delta_W", f"block {block}", ours, delta)


def test_alphaedit(recorded: Recorded) -> None:
    """Batches one after the other; the keys that protect earlier edits are read plainly as well."""
    settings, moments, model = recorded.json("alphaedit"), recorded.moments(), recorded.model
    method, family = alphaedit_of(settings), family_of(recorded.model)
    blocks, patches = method.edited_blocks, []
    P = {b: plain.projector(moments[b].matrix, method.null_space_threshold) for b in blocks}
    memory = {b: torch.zeros_like(P[b]) for b in blocks}

    def solve(K: torch.Tensor, R: torch.Tensor, block: int) -> torch.Tensor:
        return plain.alphaedit(K, R, P[block], memory[block], method.ridge)

    names = [family.weight_name(block) for block in blocks]
    with plain.borrowed(model, names):
        for batch in settings["batches"].values():
            rewrites = own_rewrites(recorded, method, batch["requests"][:AT_MOST])
            kind = "z on an edited model" if patches else "z"
            targets = searched_both_ways(recorded, method, rewrites, kind)
            updates = method.updates(model, rewrites, targets, moments, patches)
            deltas = plain.edit_blocks(model, rewrites, targets.values, blocks, solve)
            for block, delta in deltas.items():
                ours = updates[family.weight_name(block)].delta()
                recorded.hold("plain alphaedit", "delta_W", f"block {block}", ours, delta)
                plain.add(model, block, delta)
            for block in blocks:
                K = torch.stack([plain.key(model, row, block) for row in rewrites], dim=1).double()
                memory[block] = memory[block] + K @ K.T
            base = Base(name=recorded.name, model_type=model.config.model_type, weights="")
            made_by = Provenance(base=base, method=method.name, settings={}, requests=())
            patches.append(WeightPatch(updates, made_by))


def test_repaired_ids(recorded: Recorded) -> None:
    """Our ids are those of the reference with its target handling repaired (L1, L2, T4)."""
    for method, records in [*rome_settings(recorded), *memit_settings(recorded)]:
        for record, ours in zip(records, own_rewrites(recorded, method, records), strict=True):
            flat = ["{}", *(prefix + "{}" for prefix in method.contexts.prefixes or ())]
            groups = [flat[:1], flat[1:]] if method.place == "block" else [flat]
            repaired = reference_rewrite(
                recorded.tokenizer, record, groups, method.position, "word"
            )
            keys = [row for group in repaired.keys for row in group]
            rows = zip(repaired.rows, keys, strict=True)
            at_key = tuple(replace(row, position=key.position) for row, key in rows)
            assert ours == replace(repaired, rows=at_key), record
