"""Promise 7: working on many things at once gives each what it gets alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods.closed_form.keys import keys_of
from errata.methods.closed_form.residual import target_site
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_search import Targets, search_targets
from errata.metrics.likelihood import Likelihood, likelihoods
from errata.models.families import FAMILIES, family_of
from errata.models.hooks import Site
from errata.models.layerwise import read_at
from errata.models.tokens import encode
from errata.patches.edited_model import EditedModel
from errata.statistics.measure import measure
from laws.bench import (
    TYPICAL,
    apply_edit,
    by_default,
    closeness,
    edited_model,
    moments_of,
    over_families,
    over_methods,
    over_shapes,
    quick,
    rewrites_of,
)
from plain import Place, place_of, search
from tiny import CONFIGS, FACTS, SENTENCES

NEAR = 3e-5
SEARCH = Search(steps=4, learning_rate=0.2, clamp=1.5, stop_at=0.0, kl_weight=0.5)
PAIRS = [
    ("The Lantern Bridge is in the city of", " Quenby"),
    ("It", " is"),
    ("Orsolya Brandt speaks the language of the", " northern islands"),
    ("The sea", " of Pell, and its people"),
]
over_places = pytest.mark.parametrize(
    ("model_type", "place"),
    by_default(
        TYPICAL,
        [
            (name, place)
            for name in CONFIGS
            for place in ("block", "mlp")
            # Behind a norm or factor there is no place to search at: the law below.
            if place == "mlp" or FAMILIES[name.partition(",")[0]].adds_unchanged
        ],
    ),
)
over_tokenizers = pytest.mark.parametrize("bos", [True, False], ids=["bos", "no_bos"])


def exact_model(model_type: str, bos: bool = True) -> EditedModel:
    """Return a model in float64, where the order of sums cannot hide a wrong term."""
    return edited_model(model_type, bos=bos, dtype=torch.float64)


@contextmanager
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def searched(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], place: Place = "block", **given: Any
) -> Targets:
    settings, block = given.pop("settings", SEARCH), given.pop("block", 2)
    site = target_site(model, block, place)
    return search_targets(model, rewrites, block, site, settings, **given)


@over_places
@over_tokenizers
def test_requests_searched_together_find_what_a_plain_search_finds(
    model_type: str, place: Place, bos: bool
) -> None:
    edited = exact_model(model_type, bos)
    rewrites = rewrites_of(edited)
    together = searched(edited.model, rewrites, place)
    for index, rewrite in enumerate(rewrites):
        with in_float64():
            found = search(edited.model.requires_grad_(False), rewrite, 2, place, SEARCH)
        assert closeness(together.initial[index], found.initial) < NEAR
        assert closeness(together.delta[index], found.delta) < NEAR
        assert closeness(together.losses[index], found.losses) < NEAR


@over_shapes
@over_tokenizers
def test_requests_searched_together_find_what_each_finds_alone(model_type: str, bos: bool) -> None:
    edited = exact_model(model_type, bos)
    rewrites = rewrites_of(edited)
    together = searched(edited.model, rewrites)
    for index, rewrite in enumerate(rewrites):
        alone = searched(edited.model, [rewrite])
        assert closeness(together.values[index], alone.values[0]) < NEAR
        assert closeness(together.losses[index], alone.losses[0]) < NEAR


@over_shapes
@pytest.mark.parametrize(("at_once", "budget"), [(1, 60), (3, 1)])
def test_the_grouping_of_a_search_does_not_matter(
    model_type: str, at_once: int, budget: int
) -> None:
    edited = exact_model(model_type)
    rewrites = rewrites_of(edited)
    usual = searched(edited.model, rewrites)
    other = searched(edited.model, rewrites, at_once=at_once, budget=budget)
    assert closeness(other.delta, usual.delta) < NEAR
    for ours, theirs in zip(other.losses, usual.losses, strict=True):
        assert closeness(ours, theirs) < NEAR


@over_families
@pytest.mark.parametrize(("block", "loss_block"), [(2, None), (1, 2)])
def test_requests_that_are_done_early_leave_the_others_alone(
    model_type: str, block: int, loss_block: int | None
) -> None:
    edited = exact_model(model_type)
    rewrites = rewrites_of(edited)
    settings = SEARCH.with_values(
        steps=6, learning_rate=0.5, weight_decay=0.0, kl_weight=0.0, loss_block=loss_block
    )
    endless = searched(edited.model, rewrites, block=block, settings=settings)
    by_start = sorted(range(len(rewrites)), key=lambda i: float(endless.losses[i][0, 0]))
    stop_at = float(endless.losses[by_start[1]][2:4, 0].mean())
    settings = settings.with_values(stop_at=stop_at)
    together = searched(edited.model, rewrites, block=block, settings=settings)
    counts = [len(trace) for trace in together.losses]
    low = [trace[:, 0] < stop_at for trace in endless.losses]
    assert counts == [int(done.int().argmax()) + 1 if done.any() else 6 for done in low]
    assert min(counts) == 1
    assert max(counts) == 6
    for index, rewrite in enumerate(rewrites):
        alone = searched(edited.model, [rewrite], block=block, settings=settings)
        assert len(alone.losses[0]) == counts[index]
        assert closeness(together.delta[index], alone.delta[0]) < NEAR
        assert closeness(together.losses[index], endless.losses[index][: counts[index]]) < NEAR


@over_shapes
def test_a_request_that_is_done_at_once_is_left_as_it_stood(model_type: str) -> None:
    edited = edited_model(model_type)
    targets = searched(
        edited.model, rewrites_of(edited), settings=SEARCH.with_values(stop_at=100.0)
    )
    assert not targets.delta.any()
    assert [len(trace) for trace in targets.losses] == [1] * len(FACTS)


@over_shapes
@pytest.mark.parametrize("clamp", [0.01, 0.03])
def test_a_change_stays_within_its_clamp(model_type: str, clamp: float) -> None:
    edited = edited_model(model_type)
    targets = searched(edited.model, rewrites_of(edited), settings=SEARCH.with_values(clamp=clamp))
    longest = clamp * targets.initial.norm(dim=1)
    assert (targets.delta.norm(dim=1) <= longest * (1 + 1e-5)).all()
    assert (targets.delta.norm(dim=1) >= longest * (1 - 1e-5)).any()


@over_shapes
@over_tokenizers
def test_keys_read_together_are_those_read_alone(model_type: str, bos: bool) -> None:
    edited = edited_model(model_type, bos=bos)
    rewrites = rewrites_of(edited)
    keys, bare = keys_of(edited.model, rewrites, 1)
    for index, rewrite in enumerate(rewrites):
        key, alone = keys_of(edited.model, [rewrite], 1)
        assert closeness(keys[index], key[0]) < NEAR
        assert closeness(bare[index], alone[0]) < NEAR
    rows = [row for rewrite in rewrites for row in rewrite.rows]
    sites = [Site(place_of(edited.model, block, "block"), "output") for block in (0, 3)]
    for one, many in zip(
        read_at(edited.model, rows, sites, budget=1),
        read_at(edited.model, rows, sites),
        strict=True,
    ):
        assert closeness(one, many) < NEAR


def near(ours: Likelihood, theirs: Likelihood) -> bool:
    return ours.likeliest == theirs.likeliest and abs(ours.nll - theirs.nll) < NEAR * theirs.nll


@over_shapes
@over_tokenizers
def test_likelihoods_do_not_depend_on_company(model_type: str, bos: bool) -> None:
    edited = edited_model(model_type, bos=bos)
    together = likelihoods(edited, PAIRS)
    short = likelihoods(edited, PAIRS, budget=20)
    for pair, one, other in zip(PAIRS, together, short, strict=True):
        (alone,) = likelihoods(edited, [pair])
        assert near(one, alone)
        assert near(one, other)


@over_shapes
@over_tokenizers
def test_likelihoods_are_those_of_a_plain_forward(model_type: str, bos: bool) -> None:
    edited = edited_model(model_type, bos=bos)
    for (prompt, answer), ours in zip(PAIRS, likelihoods(edited, PAIRS), strict=True):
        start = len(encode(edited.tokenizer, prompt).ids)
        ids = torch.tensor([encode(edited.tokenizer, prompt + answer).ids])
        assert (ids[0, 0] == edited.tokenizer.bos_token_id) == bos
        with torch.no_grad():
            said = edited.model(input_ids=ids).logits[0].log_softmax(-1)
        steps = range(start, ids.shape[1])
        nll = -sum(float(said[i - 1, ids[0, i]]) for i in steps) / len(steps)
        best = all(int(said[i - 1].argmax()) == int(ids[0, i]) for i in steps)
        assert near(ours, Likelihood(nll, best))


@over_shapes
@over_methods
def test_how_the_tokenizer_pads_and_what_else_it_tells_makes_no_difference(
    model_type: str, method_name: str
) -> None:
    """Padding side, and token_type_ids, which would shift the states of GPT-2."""
    made = []
    for side, inputs in (
        ("left", ["input_ids", "token_type_ids", "attention_mask"]),
        ("right", ["input_ids"]),
    ):
        edited = edited_model(model_type)
        edited.tokenizer.padding_side = edited.tokenizer.truncation_side = side
        edited.tokenizer.model_input_names = inputs
        method = quick(method_name, contexts={"prefix_lengths": (2,)})
        patch = apply_edit(edited, FACTS[:2], method, moments=moments_of(model_type))
        scores = likelihoods(edited, PAIRS)
        made.append((patch, scores, edited.generate("The sea", 3)))
    assert made[0] == made[1]


@over_shapes
@over_tokenizers
def test_a_second_moment_does_not_know_of_padding(model_type: str, bos: bool) -> None:
    edited = exact_model(model_type, bos)
    rows = [encode(edited.tokenizer, text).ids for text in SENTENCES[:4]]
    for block in (0, 2):
        seen = inputs_of(edited.model, rows, block)
        plain = seen.T @ seen / len(seen)
        for budget in (1, 50, 4096):
            moments = measure(edited.model, rows, [2, 0], budget=budget)
            assert sorted(moments) == [0, 2]
            assert moments[block].count == len(seen)
            assert closeness(moments[block].matrix, plain) < NEAR


@torch.no_grad()
def inputs_of(model: PreTrainedModel, rows: Sequence[tuple[int, ...]], block: int) -> Tensor:
    """Return what the MLP output matrix reads, row by row: (tokens, d_in)."""
    seen: list[Tensor] = []
    write = family_of(model).mlp_out(model, block)
    handle = write.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    for row in rows:
        model(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(seen)
