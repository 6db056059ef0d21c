"""Scores are those that the published evaluation gave, and ours where that has a defect."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from errata.data.case import Case
from errata.data.datasets import read_cases
from errata.data.request import SLOT
from errata.metrics.likelihood import answer_row
from errata.metrics.teacher_forced import score_cases
from errata.metrics.text_quality import TfIdf, n_gram_entropy, words
from errata.patches.edited_model import EditedModel
from parity.check_scores import (
    check_states,
    counterfact_row,
    hold,
    plain_likelihood,
    prompts_of,
)
from parity.check_texts import check_summaries, check_texts
from parity.recorded import Recorded


def test_prompts(recorded: Recorded) -> None:
    check_states(recorded)


def test_texts(recorded: Recorded) -> None:
    check_texts(recorded)


def test_summaries(recorded: Recorded) -> None:
    if recorded.has("summarize") or recorded.has("summarize_cases/*"):
        check_summaries(recorded)


def test_own_ids_are_the_repaired_reference_ids(recorded: Recorded) -> None:
    """Ours are the fork's with special tokens left out of targets (L3), a lone "▁" dropped,
    and no second space before a target that is stored with one (E2)."""
    for record in recorded.inputs("cf_records"):
        for prompts in prompts_of(record).values():
            for prompt in prompts:
                for name in ("target_new", "target_true"):
                    target = record["requested_rewrite"][name]["str"].strip()
                    theirs = counterfact_row(recorded, "bos_fixed", prompt, target)
                    assert answer_row(recorded.tokenizer, prompt, f" {target}") == theirs


def own_cases(recorded: Recorded) -> list[Case]:
    """The recorded records of both datasets, read by the package."""
    folder = recorded.folder / "inputs"
    return [
        *read_cases(str(folder / "cf_records.json")),
        *read_cases(str(folder / "zsre_raw.json")),
    ]


def test_own_scores_are_those_of_plain_forwards(recorded: Recorded) -> None:
    cases = own_cases(recorded)
    edited = EditedModel(recorded.model, recorded.tokenizer, "recorded")
    for case, rows in zip(cases, score_cases(edited, cases), strict=True):
        answers = dict(zip(case.neighbours, case.neighbour_answers, strict=False))
        for row in rows:
            true = answers.get(row.prompt, case.target_true)
            for ours, answer in ((row.new, case.request.target), (row.true, true)):
                if ours is not None:
                    expected = plain_likelihood(recorded, row.prompt, f" {answer}")
                    hold(recorded, "pre", row.prompt, ours.nll, expected.nll, floor=1.0)
                    assert ours.correct == expected.correct, (row.prompt, answer)


def test_own_zsre_tokens_hold_no_special_ones(recorded: Recorded) -> None:
    """Neither BOS nor a lone "▁" is an answer token that nobody could get right (L4)."""
    raw = recorded.inputs("zsre_raw")
    for record in raw:
        for prompt, answer in (
            (record["src"], record["answers"][0]),
            (f"{record['loc']}?", record["loc_ans"]),
        ):
            row = answer_row(recorded.tokenizer, prompt, f" {answer}")
            assert not set(row.targets) & set(recorded.tokenizer.all_special_ids)
            assert recorded.tokenizer.decode(row.targets).strip() == answer


def test_words_counted_plainly(recorded: Recorded) -> None:
    """Entropy and TF-IDF written out: counts, logarithms, a cosine."""
    told = recorded.json("eval")["tfidf"]
    for text in recorded.inputs("fixed_strings"):
        found, total = words(text), 0.0
        for n, weight in ((2, 2 / 3), (3, 4 / 3)):
            counts = Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
            shares = [count / sum(counts.values()) for count in counts.values()]
            total += weight * -sum(share * math.log(share) for share in shares) / math.log(2) / 2
        assert n_gram_entropy(text) == pytest.approx(total)
    vectors = TfIdf.of(told["vocabulary"], told["idf"])
    for pair in told["pairs"]:
        bags = []
        for text in (pair["a"], pair["b"]):
            bag = Counter(word for word in text.lower().replace(".", " ").split() if len(word) > 1)
            bags.append(
                {
                    w: c * told["idf"][told["vocabulary"][w]]
                    for w, c in bag.items()
                    if w in told["vocabulary"]
                }
            )
        dot = sum(bags[0][w] * bags[1].get(w, 0.0) for w in bags[0])
        norms = math.prod(math.sqrt(sum(x * x for x in bag.values())) for bag in bags)
        assert vectors.similarity(pair["a"], pair["b"]) == pytest.approx(dot / norms)


def test_zsre_cases_are_the_recorded_records(recorded: Recorded) -> None:
    """Prompts and answers are the fork's; only its neighbours are cut token by token."""
    records = recorded.json("eval")["zsre_records"]["cyj"]
    cases = read_cases(str(recorded.folder / "inputs" / "zsre_raw.json"))
    for case, record in zip(cases, records, strict=True):
        rewrite = record["requested_rewrite"]
        assert case.id == record["case_id"]
        assert case.request.prompt == rewrite["prompt"]
        assert case.request.text == rewrite["prompt"].replace(SLOT, rewrite["subject"])
        assert case.request.target == rewrite["target_new"]["str"]
        assert list(case.paraphrases) == record["paraphrase_prompts"]
        assert case.neighbours == (record["neighborhood_prompts"][0]["prompt"],)
