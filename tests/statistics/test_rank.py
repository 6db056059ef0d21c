"""The numerical rank of a second moment decides whether it can be used, not its token count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.core.errors import ErrataError
from errata.data.corpus import Corpus
from errata.methods.edit import compute_edit
from errata.methods.moments import is_singular, shortages
from errata.models.families import family_of, width_of
from errata.models.tokens import encode
from errata.statistics.second_moment import SecondMoment
from errata.statistics.text import measured
from laws.bench import edited_model, found, moments_of, over_families, over_methods, quick
from tiny import BLOCKS, FACTS, SENTENCES


def repeated(model_type: str) -> dict[int, SecondMoment]:
    """Return the moments of one sentence three hundred times: thousands of tokens, few keys."""
    return measured(edited_model(model_type), Corpus("one", [SENTENCES[0]] * 300), (1, 2))


@over_methods
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_corpus_of_one_sentence_is_refused_and_neighbours_are_left_alone(
    model_type: str, method_name: str
) -> None:
    edited, moments = edited_model(model_type), repeated(model_type)
    before = found(edited.model)
    with pytest.raises(ErrataError, match=r"is singular: its rank is \d+ of \d+"):
        compute_edit(edited, FACTS[:1], quick(method_name), moments=moments)
    assert found(edited.model) == before
    assert all(moment.count > 20 * len(moment.matrix) for moment in moments.values())
    assert len(shortages(moments)) in (1, 2)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_repeated_text_counts_once_for_the_null_space(model_type: str) -> None:
    """Its moment is that of the text given once, which has too few tokens."""
    edited, method = edited_model(model_type), quick("alphaedit")
    width = width_of(family_of(edited.model).mlp_out(edited.model, 1))
    once, tokens = [], 0
    while tokens < 1.5 * width:
        once.append(SENTENCES[len(once)])
        tokens += len(encode(edited.tokenizer, once[-1]).ids)
    few, many = (measured(edited, Corpus("x", once * n), (1, 2)) for n in (1, 10))
    assert few[1].rank == many[1].rank == width
    assert many[1].count == 10 * few[1].count > 2 * width
    assert many[1].distinct == few[1].distinct == few[1].count < 2 * width
    with pytest.raises(ErrataError, match="tokens are too few for a null space"):
        method.check(few[1])
    with pytest.raises(ErrataError, match=r"\d+ tokens \(\d+ without repeated text\) are too few"):
        method.check(many[1])
    assert any("without repeated text" in line for line in shortages(many))
    quick("memit").check(many[1])
    method.check(replace(many[1], distinct=None))  # stored by an earlier version


@over_families
def test_moments_of_varied_text_have_full_rank(model_type: str) -> None:
    for moment in moments_of(model_type).values():
        assert moment.rank == len(moment.matrix)
    assert len(moments_of(model_type)) == BLOCKS


@pytest.mark.parametrize("rank", [1, 7, 39, 40])
@pytest.mark.parametrize("spread", [0.0, 3.0], ids=["alike", "of very different sizes"])
def test_the_rank_is_how_many_directions_the_keys_span(rank: int, spread: float) -> None:
    source = torch.Generator().manual_seed(rank)
    sizes = torch.exp(spread * torch.randn(40, 1, generator=source, dtype=torch.float64))
    basis = torch.randn(40, rank, generator=source, dtype=torch.float64)
    keys = sizes * (basis @ torch.randn(rank, 5000, generator=source, dtype=torch.float64))
    moment = SecondMoment((keys @ keys.T / 5000).float(), 5000)
    assert moment.rank == rank
    assert is_singular(moment) is (rank < 40)


def test_a_key_that_is_never_active_lowers_the_rank() -> None:
    matrix = torch.eye(5)
    matrix[2, 2] = 0
    assert SecondMoment(matrix, 100).rank == 4
    assert SecondMoment(torch.eye(5), 1).rank == 5
