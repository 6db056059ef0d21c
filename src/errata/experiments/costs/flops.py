"""The FLOPs of scoring cases and of generating answers, counted.

FLOPs (2 for a multiplication and an addition) are counted from the model's matrices and the
tokens that pass through them. Attention's own products are left out; they are negligible for
short texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from errata.data.case import Case
from errata.metrics.likelihood import answer_row, tokens_scored
from errata.metrics.prompts import prompts_of
from errata.models.shape import ModelShape

OBJECT_BYTES = 25_000
"""Approximate memory of a request in a run: its texts, their tokens, its scores."""


def asking_flops(
    shape: ModelShape, tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]
) -> float:
    """Return the FLOPs of scoring every prompt of every case, both targets."""
    rows = [
        answer_row(tokenizer, prompt.text, case.request.separator + target)
        for case in cases
        for prompt in prompts_of(case)
        for target in (prompt.new, prompt.true)
        if target is not None
    ]
    return shape.forward(tokens_scored(rows), sum(len(row.targets) for row in rows))


def written_tokens(cases: Sequence[Case], answer: int, text: int) -> int:
    """Return the maximum number of generated tokens: answers to all prompts, and free texts."""
    prompts = sum(len(prompts_of(case)) for case in cases)
    return prompts * answer + text * sum(len(case.generation_prompts) for case in cases)
