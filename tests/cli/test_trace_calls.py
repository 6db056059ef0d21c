"""How often `errata trace` does each step: one way in, one question, one average."""

from __future__ import annotations

import re
from pathlib import Path

from cli.calls import Calls, calls

FACT = ("The {Lantern Bridge} is in the city of", "Quenby")
FAST = ("--samples", "2", "--subject-last-only", "--kinds", "hidden,mlp", "--recommend", "--json")


def into_experiments(found: Calls) -> dict[str, int]:
    """Return how often the verb calls each public function of `experiments`."""
    public = re.compile(r"experiments\.\w+\.[a-z]\w*")
    return {name: count for name, count in found.from_verbs.items() if public.fullmatch(name)}


def test_one_fact_is_checked_encoded_and_traced_once(pico_folder: Path) -> None:
    found = calls("trace", "pico", *FACT, *FAST)
    assert into_experiments(found) == {"experiments.fact_tracing.trace_fact": 1}
    once = (
        "data.request.EditRequest.parse",
        "tracing.question.ask_model",
        "tracing.causal.trace_question",
        "tracing.averages.nothing_lost",
        "experiments.trace_run.noise_level",
        "tracing.corruption.noise_of",
    )
    assert {name: found.counts[name] for name in once} == dict.fromkeys(once, 1)
    # The prompt, the prompt with its answer, and the subject, whose embeddings are measured.
    assert found.counts["models.tokens.encode"] == 3
    entered = [name for name in found.counts if name.startswith("cli.trace.")]
    assert entered == ["cli.trace.trace"] and found.counts["cli.trace.trace"] == 1


def test_facts_of_a_dataset_are_encoded_and_averaged_once(pico_folder: Path) -> None:
    found = calls("trace", "demo", "--dataset", "demo-known", "--limit", "2", *FAST)
    assert into_experiments(found) == {"experiments.fact_tracing.trace_facts": 1}
    twice = (
        "tracing.question.ask_model",
        "models.tokens.answer_ids",
        "tracing.causal.trace_question",
    )
    assert {name: found.counts[name] for name in twice} == dict.fromkeys(twice, 2)
    for name in ("average", "nothing_lost"):
        assert found.counts[f"tracing.averages.{name}"] <= 2, name
