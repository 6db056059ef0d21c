"""Work is counted, not timed: what runs through blocks and head, what is kept, what is solved."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

import errata.methods.closed_form.keys
import errata.methods.closed_form.target_search
import errata.models.prefix_cache
from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.methods.closed_form.keys import keys_of
from errata.methods.closed_form.memory import Texts, group_bytes, search_bytes, searched_at_once
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_loss import TargetLoss, tokens_searched
from errata.methods.closed_form.target_search import Targets, search_targets
from errata.methods.edit import compute_edit
from errata.metrics.likelihood import answer_row, score_token_rows, tokens_scored
from errata.models.families import FAMILIES, family_of
from errata.models.hooks import Site, first_tensor, frozen
from errata.models.layerwise import read_at
from errata.models.shape import ModelShape
from errata.models.tokens import TokenRow
from laws.bench import (
    TYPICAL,
    by_default,
    closeness,
    edited_model,
    moments_of,
    over_families,
    over_shapes,
    quick,
    rewrites_of,
)
from tiny import BLOCKS, CONFIGS, FACTS

STEPS, BLOCK = 3, 1
SEARCH = Search(steps=STEPS, learning_rate=0.2, clamp=1.5, stop_at=0.0, kl_weight=0.5)


# The estimates of a search count suffixes and shared prefixes, which need a cache of every token.
over_cached = pytest.mark.parametrize(
    "model_type", by_default(TYPICAL, [name for name in CONFIGS if name != "qwen3_5_text"])
)


@dataclass
class Work:
    """Tokens that ran through every block and the last MLP, and rows of the head."""

    blocks: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    last_mlp: int = 0
    head: int = 0
    heads: list[int] = field(default_factory=list)
    """Rows of each call of the head."""


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Work]:
    """Count by hooks on attention and MLPs, which run only where the real block does."""
    work, family = Work(), family_of(model)

    def size(value: Any) -> int:
        state = first_tensor(value)
        return math.prod(state.shape[:-1])

    def block(index: int, out: Any) -> None:
        work.blocks[index] += size(out)

    def mlp(out: Any) -> None:
        work.last_mlp += size(out)

    def head(out: Tensor) -> None:
        work.head += size(out)
        work.heads.append(size(out))

    with ExitStack() as stack:
        for index in range(BLOCKS):
            attention = family.attention(model, index)
            handle = attention.register_forward_hook(lambda _, args, out, i=index: block(i, out))
            stack.callback(handle.remove)
        write = family.mlp_out(model, BLOCKS - 1)
        for module, told in ((write, mlp), (model.get_output_embeddings(), head)):
            handle = module.register_forward_hook(lambda _, args, out, told=told: told(out))
            stack.callback(handle.remove)
        yield work


def searched(model: PreTrainedModel, rewrites: list[Rewrite], **given: Any) -> Targets:
    site = Site(family_of(model).mlp_out(model, BLOCK), "output")
    settings = given.pop("settings", SEARCH)
    return search_targets(model, rewrites, BLOCK, site, settings, **given)


@over_cached
def test_a_search_runs_what_its_vector_can_reach_and_nothing_else(model_type: str) -> None:
    edited = edited_model(model_type)
    rewrites = rewrites_of(edited)
    with counted(edited.model) as work:
        searched(edited.model, rewrites)
    once, step, looked_at = tokens_searched(rewrites, 4096)
    assert work.heads == [looked_at] * STEPS  # one call a step, for what the loss looks at
    family = FAMILIES[model_type.partition(",")[0]]
    if family.block_mlp != family.block_mlp_out:  # else the hook sees the output after its padding
        assert work.last_mlp == STEPS * looked_at
    bare = [rewrite.keys[0][0].position + 1 for rewrite in rewrites]  # for h₀
    padded = len(bare) * max(bare)
    assert work.blocks[: BLOCK + 1] == [once + padded] * (BLOCK + 1)
    assert work.blocks[BLOCK + 1 :] == [once + STEPS * step] * (BLOCKS - BLOCK - 1)


@over_families
def test_requests_that_are_done_leave_the_batch(model_type: str) -> None:
    edited = edited_model(model_type)
    rewrites = rewrites_of(edited)
    objective = TargetLoss(edited.model, rewrites, BLOCK, SEARCH, 4096)
    delta = torch.zeros(len(FACTS), edited.model.config.get_text_config().hidden_size)
    done, runs = [[0, 1, 2, 3], [1, 3], [3]], []
    with frozen(edited.model), torch.no_grad():
        for active in done:
            with counted(edited.model) as work:
                nll, _ = objective.losses(delta, active)
            runs.append(work)
            assert (nll != 0).nonzero()[:, 0].tolist() == active
    alone = sum(max(1, len(row.targets)) for row in (*rewrites[3].rows, rewrites[3].essence))
    assert runs[2].head == alone < runs[1].head < runs[0].head
    assert runs[2].blocks[-1] < runs[1].blocks[-1] < runs[0].blocks[-1]


@over_cached
def test_what_rows_begin_alike_with_runs_once(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prefixes stand before every request; without sharing all is as before."""
    edited = edited_model(model_type, dtype=torch.float64)
    rewrites = rewrites_of(edited)
    found, works = [], []
    for worth in (1, 10**6):
        monkeypatch.setattr(errata.models.prefix_cache, "WORTH_A_PASS", worth)
        with counted(edited.model) as work:
            keys, bare = keys_of(edited.model, rewrites, BLOCK)
        with counted(edited.model) as search:
            targets = searched(edited.model, rewrites)
        found.append((keys, bare, targets.initial, targets.delta))
        works.append((work.blocks[0], search.blocks[0]))
    for shared, apart in zip(*found, strict=True):
        assert closeness(shared, apart) < 3e-5
    assert works[0][0] < 0.8 * works[1][0]
    assert works[0][1] < 0.9 * works[1][1]


def test_a_past_is_right_whatever_the_order_of_the_places_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errata.models.prefix_cache, "WORTH_A_PASS", 1)
    model = edited_model("llama").model
    rows = [row.key for rewrite in rewrites_of(edited_model("llama")) for row in rewrite.rows]
    sites = [Site(family_of(model).block(model, block), "output") for block in (3, 0)]
    for together, site in zip(read_at(model, rows, sites), sites, strict=True):
        for row, vector in zip(rows, together, strict=True):
            assert closeness(vector, read_at(model, [row], [site])[0][0]) < 3e-5


@over_families
def test_keys_stop_at_the_weight(model_type: str) -> None:
    edited = edited_model(model_type)
    with counted(edited.model) as work:
        keys_of(edited.model, rewrites_of(edited), BLOCK)
    assert work.blocks[BLOCK] > 0
    assert work.blocks[BLOCK + 1 :] == [0] * (BLOCKS - BLOCK - 1)
    assert work.head == 0


def test_a_row_that_another_begins_with_is_scored_on_that_one() -> None:
    edited = edited_model("llama")
    rows = [
        answer_row(edited.tokenizer, fact.text, f" {target}")
        for fact in FACTS
        for target in ("Quenby", "Quenby of Tarn")
    ]
    with counted(edited.model) as work:
        score_token_rows(edited.model, rows)
    longest = max(len(row.ids) for row in rows)
    assert work.blocks == [tokens_scored(rows)] * BLOCKS == [len(FACTS) * longest] * BLOCKS
    assert work.head <= sum(len(row.targets) for row in rows[1::2])


# memory ------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """The most bytes of new tensors that were alive at once within the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, name: int, size: int) -> None:
        self.seen.discard(name)
        self.now -= size


@over_shapes
def test_keys_of_many_requests_take_the_memory_of_few(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is returned: neither rows before they are averaged nor pasts are kept for all."""
    monkeypatch.setattr(errata.methods.closed_form.keys, "REQUESTS", len(FACTS))
    monkeypatch.setattr(errata.models.prefix_cache, "WORTH_A_PASS", 1)
    edited = edited_model(model_type)
    rewrites = rewrites_of(edited)
    sites = [Site(family_of(edited.model).block(edited.model, BLOCK), "output")]

    def keys(count: int) -> Sequence[Tensor]:
        return keys_of(edited.model, rewrites * count, BLOCK)

    def states(count: int) -> Sequence[Tensor]:
        ends = product(range(8), range(8), (0, 1))  # each two rows begin alike, in eight tokens
        rows = [TokenRow((one, other, *range(2, 8), end), 8) for one, other, end in ends]
        return read_at(edited.model, rows[:count], sites, budget=16)

    def beside(read: Callable[[int], Sequence[Tensor]], count: int) -> int:
        with Live() as live:
            returned = sum(tensor.nbytes for tensor in read(count))
        return live.peak - returned

    for read in (keys, states):
        assert beside(read, 64) < 2 * beside(read, 8)


def saved_bytes(model: PreTrainedModel, rewrites: list[Rewrite]) -> int:
    """Return the bytes that one step keeps for its backward pass, weights left out."""
    objective = TargetLoss(model, rewrites, BLOCK, SEARCH, 4096)
    width = model.config.get_text_config().hidden_size
    delta, seen = torch.zeros(len(rewrites), width, requires_grad=True), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nll, _ = objective.losses(delta, range(len(rewrites)))
    nll.sum().backward()
    return sum(seen.values())


@over_cached
def test_the_memory_of_a_search_is_what_was_said(model_type: str) -> None:
    edited = edited_model(model_type)
    rewrites = rewrites_of(edited)
    shape = ModelShape.of(edited.model)
    said = sum(search_bytes(shape, BLOCK, Texts.of(rewrite)) for rewrite in rewrites)
    with frozen(edited.model):
        kept = saved_bytes(edited.model, rewrites)
    assert kept / 2 <= said <= 4 * kept  # the formula counts gradients on their way, too


def test_more_memory_lets_more_requests_be_searched_at_once() -> None:
    edited = edited_model("llama")
    rewrites = rewrites_of(edited)
    most = group_bytes(edited.model, BLOCK, rewrites)
    assert group_bytes(edited.model, BLOCK, rewrites, 5) == 5 * most
    fits = [
        searched_at_once(edited.model, BLOCK, rewrites, count * most / 2**30 + 1e-12)
        for count in (0.1, 1, 3, 7)
    ]
    assert fits == [1, 1, 3, 7]
    suffix = sum(Texts.of(rewrite).suffix for rewrite in rewrites) / len(rewrites)
    assert searched_at_once(edited.model, BLOCK, rewrites, 1000.0) == round(1024 / suffix)
    assert searched_at_once(edited.model, BLOCK, rewrites) == round(1024 / suffix)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_a_search_that_runs_out_of_memory_goes_on_with_half(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited, real, sizes = (
        edited_model("llama"),
        errata.methods.closed_form.target_search._search_group,
        [],
    )
    rewrites = rewrites_of(edited)
    usual = searched(edited.model, rewrites)

    def scarce(model: PreTrainedModel, group: list[Rewrite], *rest: Any) -> Any:
        sizes.append(len(group))
        if len(group) > 1:
            raise error
        return real(model, group, *rest)

    monkeypatch.setattr(errata.methods.closed_form.target_search, "_search_group", scarce)
    targets = searched(edited.model, rewrites)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert (usual.at_once, targets.at_once) == (16, 1)
    assert closeness(targets.delta, usual.delta) < 1e-4
    method = quick("memit", requests_at_once=3, search={"steps": 2})
    patch = compute_edit(edited, FACTS, method, moments=moments_of("llama"))
    assert "memory ran out: 1 requests were searched at once" in patch.provenance.notes


def test_other_errors_of_a_search_are_not_taken_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edited = edited_model("llama")

    def broken(*_: Any) -> Any:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(errata.methods.closed_form.target_search, "_search_group", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        searched(edited.model, rewrites_of(edited))
    monkeypatch.setattr(
        errata.methods.closed_form.target_search,
        "_search_group",
        lambda *_: (_ for _ in ()).throw(MemoryError),
    )
    with pytest.raises(ErrataError, match="memory ran out while searching a single request"):
        searched(edited.model, rewrites_of(edited))


def test_the_grouping_is_recorded_and_a_resumed_run_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited, moments = edited_model("llama"), moments_of("llama")
    cases = [Case(request=fact) for fact in FACTS]
    method = quick("memit", search={"steps": 2})
    patch = compute_edit(edited, FACTS, method, moments=moments)
    count = patch.provenance.settings["requests_at_once"]
    assert count == searched_at_once(edited.model, 2, method.rewrites(edited, FACTS))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("errata.experiments.edit_run.score_in_parts", stop)
        run_edits(edited, cases, method, moments, EditPlan(batch_size=1), tmp_path)
    with monkeypatch.context() as patched:  # a machine with less memory takes the run up
        patched.setattr("errata.methods.closed_form.memory.spare_bytes", lambda _: 1)
        run = run_edits(edited, cases, method, moments, EditPlan(batch_size=1), tmp_path)
    assert run.resumed
    kept = type(patch).load(run.patches[0]).provenance.settings["requests_at_once"]
    assert kept == count
