"""The facts that a model knows are those whose answer its greedy continuation begins with."""

from __future__ import annotations

import pytest

from errata.data.common_facts import common_facts
from errata.experiments import known_facts as module
from errata.experiments.known_facts import known_facts
from laws.bench import edited_model


def test_a_tiny_model_knows_none() -> None:
    assert known_facts(edited_model("gpt2")) == []


def test_a_fact_is_known_if_the_continuation_begins_with_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {fact.text: f" {fact.answer}, and" for fact in common_facts()}
    wrong = "The Louvre is located in the city of", "The capital of Spain is"
    said |= {wrong[0]: " a city like Paris", wrong[1]: ""}

    def continuations(model: object, tokenizer: object, prompts: list[str], n: int) -> list[str]:
        return [said[prompt] for prompt in prompts]

    monkeypatch.setattr(module, "continuations", continuations)
    unknown = [fact for fact in common_facts() if fact not in known_facts(edited_model("gpt2"))]
    assert [fact.text for fact in unknown] == list(wrong)
