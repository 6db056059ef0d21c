"""Comparisons of generated texts and of summaries of runs with what was recorded."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from errata.experiments.case_records import RunRecord
from errata.experiments.published_results import (
    published_lists,
    published_summary,
    read_published_run,
)
from errata.metrics.likelihood import perplexity
from errata.metrics.text_quality import TfIdf, n_gram_entropy, words
from errata.models.generation import free_texts
from parity.check_scores import hold
from parity.recorded import Recorded


def check_texts(recorded: Recorded) -> None:
    """Words, n-gram entropies, TF-IDF, perplexities, and texts written greedily."""
    file, texts = recorded.json("eval"), recorded.inputs("fixed_strings")
    assert [words(text) for text in texts] == file["word_tokenize"]
    found = [n_gram_entropy(text) for text in texts]
    hold(recorded, "text", "n-gram entropy", found, file["n_gram_entropy_single"])
    hold(recorded, "text", "mean", sum(found) / len(found), file["n_gram_entropy_mean"])
    geometric = file["n_gram_entropy_single_geom"]
    found = [n_gram_entropy(text, geometric=True) for text in texts[: len(geometric)]]
    hold(recorded, "text", "geometric", found, geometric)
    check_tfidf(recorded, file["tfidf"])
    for case in file["perplexity"]:
        ours = perplexity(
            recorded.model, recorded.tokenizer, case["text"], case["max_input_length"]
        )
        hold(recorded, "perplexity", "log", math.log(ours), math.log(case["value"]))
    for name in ("generate_top1", "generate_top1_batched"):
        case = file[name]
        ours = free_texts(
            recorded.model, recorded.tokenizer, case["prompts"], tokens=case["max_out_len"], top_k=1
        )
        plain = [unicodedata.normalize("NFKD", text) for text in ours]
        assert plain == case["texts"], (recorded.name, name, plain)


def check_tfidf(recorded: Recorded, told: Mapping[str, Any]) -> None:
    """Words and weights counted from the snippets, and the similarity of pairs of texts."""
    snippets = recorded.inputs("attribute_snippets")
    vectors = TfIdf([sample["text"] for group in snippets for sample in group["samples"]])
    assert vectors.vocabulary == told["vocabulary"]
    assert len(vectors.vocabulary) == told["vocab_size"]
    hold(recorded, "text", "idf", vectors.idf, told["idf"])
    given = TfIdf.of(told["vocabulary"], told["idf"])
    for pair in told["pairs"]:
        for each in (vectors, given):
            ours = each.similarity(pair["a"], pair["b"])
            hold(recorded, "text", "similarity", ours, pair["similarity"])
    first = recorded.inputs("cf_records")[0]["requested_rewrite"]
    mine = [
        sample["text"]
        for group in snippets
        if (group["relation_id"], group["target_id"])
        == (first["relation_id"], first["target_new"]["id"])
        for sample in group["samples"]
    ]
    assert mine == told["consistency_texts_case0"]


def check_summaries(recorded: Recorded) -> None:
    """Case files of other people's runs, summarised in every way that was recorded."""
    told = recorded.json("summarize")
    folder = recorded.folder / "goldens" / recorded.name / "summarize_cases"
    runs = [run for path in sorted(folder.iterdir()) if (run := read_published_run(path))]
    assert told, "summarize.json is empty"
    for how, expected in told.items():
        chosen = chosen_runs(runs, how)
        assert [run.folder.name for run in chosen] == [one["run_dir"] for one in expected], how
        for run, one in zip(chosen, expected, strict=True):
            ours: Mapping[str, Any] = (
                published_lists(run) if how == "uncompressed" else published_summary(run)
            )
            assert not run.unreadable, run.unreadable
            assert len(run.cases) == one["num_cases"]
            figures = {
                key: value for key, value in one.items() if key not in ("run_dir", "num_cases")
            }
            assert set(ours) == set(figures), set(ours) ^ set(figures)
            for name, value in figures.items():
                hold_pair(recorded, f"{how}, {run.folder.name}, {name}", ours[name], value)


def chosen_runs(runs: Sequence[RunRecord], how: str) -> list[RunRecord]:
    """Return the runs, or the part of them, that an entry of summarize.json is about."""
    if how.startswith("only_"):
        return [run for run in runs if run.folder.name == how.removeprefix("only_")]
    if how.startswith("first_n_cases_"):
        return [run.first(int(how.removeprefix("first_n_cases_"))) for run in runs]
    assert how in ("all", "uncompressed"), f"summarize.json has an unknown entry {how}"
    return list(runs)


def hold_pair(
    recorded: Recorded, what: str, ours: Sequence[float], theirs: Sequence[float]
) -> None:
    """Compare lists of numbers in which NaN equals NaN."""
    assert [math.isnan(x) for x in ours] == [math.isnan(x) for x in theirs], what
    numbers = [[x for x in side if not math.isnan(x)] for side in (ours, theirs)]
    hold(recorded, "text", what, *numbers)
