"""The token rows of a corpus that a second moment is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.data.corpus import Corpus
from errata.models.families import positions_of
from errata.patches.edited_model import EditedModel
from errata.statistics.accumulate import Rows
from errata.statistics.measure import measure, token_rows
from errata.statistics.second_moment import SecondMoment

HELD_OUT_TOKENS = 2048
"""Tokens after those of an estimate, on whose keys its convergence is measured."""


def readable(edited: EditedModel, length: int) -> int:
    """Return `length`, limited to the model's maximum number of positions."""
    return min(length, positions_of(edited.model))


class Text(NamedTuple):
    """The token rows that a moment is measured on, and held-out rows after them."""

    rows: Rows
    held_out: Rows | None
    """Rows after the last of `rows`, for the convergence; None for a whole corpus."""


def text_of(edited: EditedModel, corpus: Corpus, tokens: int | None, length: int) -> Text:
    """Encode the first `tokens` tokens of a corpus, or all; see `Store.get`."""
    texts, length = iter(corpus.texts), readable(edited, length)
    rows = token_rows(edited.tokenizer, texts, length, tokens)
    if tokens is None:
        return Text(rows, None)
    return Text(rows, token_rows(edited.tokenizer, texts, length, HELD_OUT_TOKENS))


def measured(
    edited: EditedModel,
    corpus: Corpus,
    blocks: Sequence[int],
    *,
    tokens: int | None = None,
    length: int = 512,
    progress: Progress = no_progress,
    say: Say = say_nothing,
) -> dict[int, SecondMoment]:
    """Measure C of the unedited model at `blocks`; see `Store.get`."""
    rows, held_out = text_of(edited, corpus, tokens, length)
    with edited.without_patches():
        return measure(edited.model, rows, blocks, held_out=held_out, progress=progress)
