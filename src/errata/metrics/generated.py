"""Answers generated for cases: which were right before and after, summarised with intervals."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.data.case import Case
from errata.metrics.scores import Score, grouped_share
from errata.metrics.teacher_forced import PROMPT_KINDS, SAME_SUBJECT, prompts_of
from errata.models.generation import continuations


class Answer(NamedTuple):
    """What a model wrote after one prompt of a case."""

    kind: str
    prompt: str
    text: str
    begins: bool | None
    """Whether the text begins with the right answer; None where that is not known."""
    holds: bool | None
    """Whether the right answer stands anywhere in it."""


def answer_cases(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    max_new_tokens: int = 32,
) -> list[list[Answer]]:
    """Let the model answer every prompt of every case, and look for the right answer."""
    asked = [prompts_of(case) for case in cases]
    flat = [prompt.text for prompts in asked for prompt in prompts]
    texts = iter(continuations(model, tokenizer, flat, max_new_tokens))
    found = []
    for case, prompts in zip(cases, asked, strict=True):
        answers = []
        for prompt in prompts:
            text, right = next(texts), prompt.right
            spaced = case.request.separator != ""
            begins = None if right is None else stands_in(right, text, at_start=True, spaced=spaced)
            holds = None if right is None else stands_in(right, text, spaced=spaced)
            answers.append(Answer(prompt.kind, prompt.text, text, begins, holds))
        found.append(answers)
    return found


def stands_in(answer: str, text: str, *, at_start: bool = False, spaced: bool = True) -> bool:
    """Whether an answer stands in a text, or begins it, whole words and in any case of letters.

    Scripts without spaces between words (`spaced=False`) have no word borders to look for.
    """
    pattern = re.escape(_plain(answer))
    if spaced:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    text = _plain(text)
    return bool(re.match(pattern, text) if at_start else re.search(pattern, text))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def summarise_answers(answers: Sequence[Sequence[Answer]]) -> dict[str, Score]:
    """Return, per kind, the share of texts that begin with the right answer, and that hold it.

    They are named `efficacy_generated`, `efficacy_generated_anywhere` and so on.
    """
    summary = {}
    for kind in (*PROMPT_KINDS, SAME_SUBJECT):
        rows = [[row for row in case if row.kind == kind] for case in answers]
        for name, groups in (
            (f"{kind}_generated", [[r.begins for r in c if r.begins is not None] for c in rows]),
            (
                f"{kind}_generated_anywhere",
                [[r.holds for r in c if r.holds is not None] for c in rows],
            ),
        ):
            score = grouped_share(groups)
            if score is not None:
                summary[name] = score
    return summary
