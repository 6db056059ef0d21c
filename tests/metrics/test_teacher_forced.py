"""What prompts score: which answer counts where, and that kinds are kept apart."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from errata.core.errors import ErrataError
from errata.data.case import Case, Probe
from errata.data.request import EditRequest
from errata.metrics.likelihood import Likelihood, answer_row, perplexity, score_token_rows
from errata.metrics.prompts import PROMPT_KINDS, prompts_of
from errata.metrics.teacher_forced import PromptScore, record_of, score_cases, score_of, summarise
from errata.models.tokens import TokenRow
from laws.bench import edited_model
from tiny import FACTS, SENTENCES, tiny_model, tiny_tokenizer

CASE = Case(
    request=FACTS[0],
    target_true="Tarn",
    paraphrases=("The Lantern Bridge stands in", "Lantern Bridge, in"),
    neighbours=("The harbour of Velmora lies in",),
    same_subject=(Probe(prompt="The Lantern Bridge was built by", answer="Holm and Sons"),),
)
QUESTION = Case(
    request=EditRequest(prompt="What does {} teach?", subject="Ilmar Tuul", target="botany"),
    paraphrases=("Ilmar Tuul teaches what?",),
    neighbours=("nq question: who owns Café Zürau?",),
    neighbour_answers=("the family of Émile Łodz",),
)


def likelihood(nll: float, *correct: bool) -> Likelihood:
    return Likelihood(nll, all(correct), correct)


def row(kind: str, new: float, true: float | None, hit: bool = True, **more: Any) -> PromptScore:
    known = None if true is None else likelihood(true, hit)
    return PromptScore(kind, "p", likelihood(new, hit), known, **more)


def test_the_new_target_is_right_but_for_neighbours() -> None:
    for kind, won, value in (
        ("efficacy", True, 1),
        ("paraphrase", True, 1),
        ("neighbourhood", False, -1),
    ):
        score = row(kind, new=0.5, true=2.0)
        assert score.success is won
        assert score.magnitude == pytest.approx(value * (math.exp(-0.5) - math.exp(-2.0)))
        assert row(kind, new=1.0, true=1.0).success is False


def test_accuracy_looks_at_the_right_answer_alone() -> None:
    new, true = likelihood(0.1, True, True), likelihood(3.0, True, False)
    assert PromptScore("paraphrase", "p", new, true).accurate is True
    assert PromptScore("neighbourhood", "p", new, true).accurate is False


def test_where_nothing_is_compared_tokens_are_counted() -> None:
    lone = PromptScore("efficacy", "p", likelihood(1.0, True, False), None)
    own = PromptScore(
        "neighbourhood", "p", likelihood(0.1, False), likelihood(2.0, True, True), True
    )
    for score, tokens in ((lone, (True, False)), (own, (True, True))):
        assert score.success is None
        assert score.magnitude is None
        assert score.tokens == tokens
    assert row("efficacy", 1.0, 2.0).tokens is None


def test_a_case_is_asked_everything_once() -> None:
    asked = [(prompt.kind, prompt.right, prompt.own) for prompt in prompts_of(CASE)]
    assert asked == [
        ("efficacy", "Quenby", False),
        ("paraphrase", "Quenby", False),
        ("paraphrase", "Quenby", False),
        ("neighbourhood", "Tarn", False),
        ("same_subject", "Holm and Sons", True),
    ]
    assert [prompt.right for prompt in prompts_of(QUESTION)] == [
        "botany",
        "botany",
        "the family of Émile Łodz",
    ]


def test_answers_of_neighbours_come_one_each() -> None:
    with pytest.raises(ErrataError, match="1 neighbours but 2"):
        QUESTION.with_values(neighbour_answers=("a", "b"))


def test_kinds_are_never_averaged_together() -> None:
    summary = summarise(score_cases(edited_model("llama"), [CASE, QUESTION]))
    assert {name: score.n for name, score in summary.items() if "_" not in name} == {
        "efficacy": 1,
        "paraphrase": 2,
        "neighbourhood": 1,
        "score": 2,
    }
    assert summary["efficacy_tokens"].n == len(
        answer_row(tiny_tokenizer(), QUESTION.request.text, " botany").targets
    )
    only = summarise(score_cases(edited_model("llama"), [QUESTION]))
    assert not {*PROMPT_KINDS, "score"} & set(only)
    assert {"efficacy_tokens", "efficacy_accuracy"} <= set(only)


def test_the_score_is_the_harmonic_mean_of_three_shares() -> None:
    first = [row("efficacy", 0, 1), row("paraphrase", 0, 1), row("neighbourhood", 1, 0)]
    second = [row("efficacy", 1, 0), row("paraphrase", 0, 1), row("neighbourhood", 1, 0)]
    summary = summarise([first, second])
    assert [summary[kind].value for kind in PROMPT_KINDS] == [0.5, 1.0, 1.0]
    assert summary["score"].value == pytest.approx(3 / (2 + 1 + 1))
    assert summary["score"].low < summary["score"].value < summary["score"].high
    assert "score" not in summarise([first[:2]])
    assert summarise([[row("efficacy", 1, 0), *first[1:]]])["score"].value == 0.0


def test_scores_are_kept_and_read_back() -> None:
    for score in (row("efficacy", 0.25, None), row("neighbourhood", 1.0, 2.0, own=True)):
        assert score_of(record_of(score)) == score


def test_rows_that_begin_alike_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two targets of a prompt, and prompts that records share, are read off one row: the same
    numbers as apart, from fewer rows."""
    model, random_ = tiny_model("gpt2"), random.Random(0)
    stem = tuple(random_.randrange(300) for _ in range(6))
    rows = [
        TokenRow((*stem, *tail)[:-1] if tail else stem[:-1], 0, (*stem, *tail)[-size:])
        for tail in ((), (1,), (1, 2), (1, 2, 3), (1, 9), (7,), (7,), (1, 2, 3))
        for size in (1, 2, 3)
    ]
    run: list[int] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        run.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    together = score_token_rows(model, rows)
    # Left are those that nothing goes on from: stem 1 2 and stem, the second with other ends.
    assert sum(run) == len({one.ids for one in rows if not any(
        other.ids != one.ids and other.ids[: len(one.ids)] == one.ids for other in rows
    )})  # fmt: skip
    for one, found in zip(rows, together, strict=True):
        (alone,) = score_token_rows(model, [one])
        assert found.correct == alone.correct
        assert found.nll == pytest.approx(alone.nll, rel=1e-5)
    with torch.no_grad():
        says = model(input_ids=torch.tensor([rows[-1].ids])).logits[0].log_softmax(-1)
    places = range(len(rows[-1].ids) - 3, len(rows[-1].ids))
    nll = -sum(float(says[p, t]) for p, t in zip(places, rows[-1].targets, strict=True)) / 3
    assert together[-1].nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_counts_the_first_token_too(bos: bool) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(bos=bos)
    ids = tokenizer(SENTENCES[0])["input_ids"][:20]
    with torch.no_grad():
        says = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    total = sum(float(says[i, ids[i + 1]]) for i in range(19))
    found = perplexity(model, tokenizer, SENTENCES[0], max_tokens=20)
    assert found == pytest.approx(math.exp(-total / 20), rel=1e-4)
    with pytest.raises(ErrataError, match="too short"):
        perplexity(model, tokenizer, SENTENCES[0], max_tokens=1)
