"""Tokenisation of instruction rows, with the labels for the loss.

Prompt and answer are encoded together if that changes no token of the prompt (see
`models.tokens.split_target`). EOS ends the answer. Rows longer than the cutoff are truncated, EOS
first, as in AGI-Edgerunners/LLM-Adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from errata.data.instructions import Instruction
from errata.data.templates import TemplateName, render_prompt
from errata.models.tokens import check_ids, split_target

IGNORE = -100
"""Label of a token that the loss ignores."""


class Coded(NamedTuple):
    """Tokenised rows, and how many were truncated (`cut`) or dropped (no labelled token)."""

    rows: list[dict[str, list[int]]]
    cut: int
    dropped: int


def code_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Instruction],
    template: TemplateName,
    cutoff: int,
    train_on_inputs: bool,
) -> Coded:
    """Return `input_ids` and `labels` of each row; rows without a labelled token are dropped."""
    coded, cut, dropped = [], 0, 0
    for row in rows:
        asked = render_prompt(template, row.instruction, row.input, tokenizer)
        prompt, answer = split_target(tokenizer, asked.prompt, asked.separator + row.output)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        check_ids(tokenizer, end)
        ids = [*prompt, *answer, *end][:cutoff]
        cut += len(prompt) + len(answer) > cutoff
        labels = list(ids) if train_on_inputs else [IGNORE] * min(len(prompt), cutoff)
        labels += ids[len(labels) :]
        if all(label == IGNORE for label in labels[1:]):
            dropped += 1
        else:
            coded.append({"input_ids": ids, "labels": labels})
    return Coded(coded, cut, dropped)
