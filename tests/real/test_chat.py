"""A real chat model answers questions through its own template, before and after an edit."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.data.case import Case
from errata.data.common_facts import Fact
from errata.data.templates import chat_prompt
from errata.methods import METHODS
from errata.methods.edit import compute_edit, prepare
from errata.metrics.likelihood import likelihoods
from errata.patches.chat_form import ChatForm
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store
from real.conftest import Command

pytestmark = pytest.mark.real
ASKED = 6
"""Number of questions."""
TOKENS = 24


def test_chat_answers_questions_through_the_template(
    name: str,
    edited: EditedModel,
    known: list[Fact],
    patches: dict[str, Path],
    errata: Command,
) -> None:
    if not edited.tokenizer.chat_template:
        pytest.skip("this model has no chat template")
    facts = known[:ASKED]
    options = ("--patch", patches["rome"], "--max-new-tokens", TOKENS)
    answers = []
    for fact in facts:  # each in a conversation of its own
        said = errata("chat", name, "-c", "-p", fact.question, *options)["answers"]
        answers += said
    right = [fact.answer in said["before"] for fact, said in zip(facts, answers, strict=True)]
    assert sum(right) > ASKED / 2, answers
    turn = [{"role": "user", "content": facts[0].question}]
    templated = edited.generate(chat_prompt(turn, edited.tokenizer), TOKENS, render=False)
    assert answers[0]["before"] == templated
    assert templated != edited.generate(facts[0].question, TOKENS)


def test_chat_continues_a_prompt_with_the_new_answer(
    name: str, patches: dict[str, Path], cases: list[Case], errata: Command
) -> None:
    request = cases[0].request
    call = ("chat", name, "-p", request.text, "--patch", patches["rome"])
    said = errata(*call, "--template", "none")["answers"]
    assert said[0]["before"].strip().startswith(cases[0].target_true)
    assert said[0]["after"].strip().startswith(request.target)


def test_an_edit_holds_in_plain_text_and_in_a_chat(
    edited: EditedModel, cases: list[Case], store: Store
) -> None:
    if not edited.tokenizer.chat_template:
        pytest.skip("this model has no chat template")
    ready = prepare(edited, METHODS["memit"], {}, store=store)
    requests = [case.request for case in cases]
    edited.apply(compute_edit(edited, requests, ready.method, moments=ready.moments))
    pairs = [(each.text, each.answer) for each in requests]
    assert all(found.likeliest for found in likelihoods(edited, pairs))
    with edited.asked(ChatForm()):
        in_chat = [found.likeliest for found in likelihoods(edited, pairs)]
    assert all(in_chat)
