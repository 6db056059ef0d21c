"""Costs known beforehand, against what PyTorch counts and what lands on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch.utils.flop_counter import FlopCounterMode

from errata.core.cost import Cost, total
from errata.data.case import Case
from errata.experiments.costs.editing import edit_costs, evaluation_cost
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.methods.closed_form.cost import patch_bytes, reading_flops, search_flops
from errata.methods.closed_form.keys import Keys, bare_rows
from errata.methods.edit import compute_edit
from errata.metrics.base import EvalSettings
from errata.metrics.teacher_forced import score_cases
from errata.models.families import family_of
from errata.models.hooks import Site
from errata.models.layerwise import LayerwiseReader
from errata.models.shape import ModelShape
from errata.patches.edited_model import EditedModel
from laws.bench import edited_model, found, moments_of, over_methods, quick, rewrites_of
from tiny import FACTS

CASES = [
    Case(request=fact, target_true="Hesk", paraphrases=("So,",), neighbours=("Marrow lies in",))
    for fact in FACTS
]
FAMILIES = pytest.mark.parametrize("model_type", ["gpt2", "gptj", "llama"])


ATTENTION = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}
"""Products of which GPT-J's attention is made; the others call a kernel that is not counted."""


def counted(work: object) -> int:
    """What PyTorch counts, attention's own products left out as ours are."""
    counter = FlopCounterMode(display=False)
    with counter, torch.backends.mkldnn.flags(enabled=False):  # its products are not counted
        work()  # type: ignore[operator]
    found = counter.get_flop_counts()["Global"]
    return sum(flops for product, flops in found.items() if product not in ATTENTION)


@FAMILIES
def test_a_forward_pass_is_what_pytorch_counts(model_type: str) -> None:
    model, ids = edited_model(model_type).model, torch.ones(3, 5, dtype=torch.long)
    ours = ModelShape.of(model).forward(tokens=15, heads=15)
    theirs = counted(lambda: model(input_ids=ids, use_cache=False))
    assert ours == pytest.approx(theirs, rel=0.1)
    assert ours <= theirs


@FAMILIES
def test_a_search_is_what_pytorch_counts(model_type: str) -> None:
    edited, ours, theirs = edited_model(model_type), [], []
    for steps in (2, 9):
        method = quick("memit", search={"steps": steps, "stop_at": 0.0})
        rewrites = method.rewrites(edited, FACTS)
        shape, block = ModelShape.of(edited.model), method.edited_blocks[-1]
        ours.append(search_flops(shape, rewrites, block, steps))
        theirs.append(counted(lambda m=method, r=rewrites: m.find_targets(edited.model, r)))
    # Older transformers multiply a few small matrices more.
    newest = Version(transformers.__version__) >= Version("5.23")
    step = pytest.approx(theirs[1] - theirs[0], rel=1e-6 if newest else 1e-3)
    assert ours[1] - ours[0] == step
    assert ours[1] == pytest.approx(theirs[1], rel=0.05)


@FAMILIES
def test_reading_is_what_pytorch_counts(model_type: str) -> None:
    edited, blocks = edited_model(model_type), (0, 1, 3)
    rewrites = rewrites_of(edited)
    top = [Site(family_of(edited.model).block(edited.model, blocks[-1]), "output")]

    def read() -> None:
        keys, bare = (
            Keys(edited.model, rewrites),
            LayerwiseReader(edited.model, bare_rows(rewrites)),
        )
        for block in blocks:
            keys.at(block)
            bare.read(top, block)

    ours = reading_flops(edited.model, rewrites, blocks)
    assert ours == pytest.approx(counted(read), rel=0.3)


def test_scoring_is_what_pytorch_counts() -> None:
    edited = edited_model("llama")
    ours = evaluation_cost(edited, CASES, EvalSettings(), halves=2).flops
    theirs = counted(lambda: score_cases(edited, CASES))
    assert ours == pytest.approx(2 * theirs, rel=0.02)


@over_methods
def test_a_patch_takes_the_room_that_was_said(method_name: str, tmp_path: Path) -> None:
    edited, method = edited_model("llama"), quick(method_name)
    patch = compute_edit(edited, FACTS, method, moments=moments_of("llama"))
    size = patch.save(tmp_path / "patch.safetensors").stat().st_size
    assert patch_bytes(edited.model, method, len(FACTS)) == pytest.approx(size, rel=0.5)


def costs_of(edited: EditedModel, plan: EditPlan, count: int = 4) -> dict[str, Cost]:
    return {cost.what: cost for cost in edit_costs(edited, quick("memit"), CASES[:count], plan)}


def test_costs_grow_with_the_work_and_leave_the_model_alone() -> None:
    edited = edited_model("llama")
    before = found(edited.model)
    few, many = costs_of(edited, EditPlan(), 2), costs_of(edited, EditPlan())
    assert found(edited.model) == before
    assert list(many) == ["search", "keys", "solve", "scores"]
    for name in many:
        assert few[name].flops < many[name].flops
    assert all(cost.seconds > 0 for cost in many.values())
    apart = costs_of(edited, EditPlan(batch_size=1))
    assert apart["solve"].disk > many["solve"].disk
    added = total(list(many.values()))
    assert added.flops == sum(cost.flops for cost in many.values())
    assert added.memory == max(cost.memory for cost in many.values())


def test_the_disk_of_a_run_is_about_what_was_said(tmp_path: Path) -> None:
    edited = edited_model("llama")
    said = total(edit_costs(edited, quick("memit"), CASES, EditPlan(batch_size=2))).disk
    run = run_edits(
        edited, CASES, quick("memit"), moments_of("llama"), EditPlan(batch_size=2), tmp_path
    )
    used = sum(
        path.stat().st_size
        for path in run.folder.iterdir()
        if path.suffix in (".safetensors", ".jsonl")
    )
    assert said == pytest.approx(used, rel=0.5)


def test_a_dry_run_runs_few_tokens() -> None:
    edited = edited_model("llama")
    method, many = quick("memit", search={"steps": 25, "max_steps": 100}), CASES * 8
    passed: list[int] = []
    handle = edited.model.model.layers[-1].register_forward_hook(
        lambda _, args, out: passed.append(args[0].shape[0] * args[0].shape[1])
    )
    try:
        edit_costs(edited, method, many, EditPlan())
        dry = sum(passed)
        passed.clear()
        score_cases(edited, many)
        score_cases(edited, many)
        method.find_targets(edited.model, method.rewrites(edited, [c.request for c in many]))
    finally:
        handle.remove()
    assert dry < 0.05 * sum(passed)
