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
"""Tokens behind those of an estimate, on whose keys it is looked at how settled it is."""


def readable(edited: EditedModel, length: int) -> int:
    """Return `length`, or fewer tokens where the model cannot read so many."""
    return min(length, positions_of(edited.model))


class Text(NamedTuple):
    """The token rows that a moment is measured on, and some that follow them."""

    rows: Rows
    held_out: Rows | None
    """Text behind the last row, to see how settled the moment is; None for a whole corpus."""


def text_of(edited: EditedModel, corpus: Corpus, tokens: int | None, length: int) -> Text:
    """Encode as much of a corpus as is asked for; see `Store.get`."""
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
