"""Which common facts a model knows: those whose answer its greedy continuation begins with."""

from __future__ import annotations

from collections.abc import Sequence

from errata.data.common_facts import Fact, common_facts
from errata.models.generation import continuations
from errata.patches.edited_model import EditedModel

TOKENS = 6
"""Tokens of a continuation; enough for the longest answer."""


def says(edited: EditedModel, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Return, per prompt, whether the model's greedy continuation begins with the answer."""
    rendered = [edited.rendered(prompt) for prompt in prompts]
    found = continuations(edited.model, edited.tokenizer, rendered, TOKENS)
    return [text.strip().startswith(answer) for text, answer in zip(found, answers, strict=True)]


def known_facts(edited: EditedModel) -> list[Fact]:
    """Return the common facts that the model knows."""
    facts = common_facts()
    right = says(edited, [fact.text for fact in facts], [fact.answer for fact in facts])
    return [fact for fact, is_right in zip(facts, right, strict=True) if is_right]
