"""Perplexity of a model on texts: per token, word and byte, in strided windows.

    ppl = exp(Σ nll / N),  N the tokens predicted, the words, or the bytes

Every token of a text is predicted once, the first one after the BOS token (or EOS, if there is no
BOS). Windows hold `window` tokens; each but the first predicts the next `stride` tokens (the
last one the rest) with as much left context as fits. With stride = window these are the windows
of lm-eval's rolling log-likelihood. Padding is never counted.

A text is not a prompt: prompt patches do not act here, other edits do.

Differs from lm-eval: there a tokenizer that adds BOS to a text adds it after the one that starts
the window, so a second BOS is predicted and counted; `add_bos_token=False` avoids that.
Differs from kmeng01/rome, whose divisor counts the first token although nothing predicts it
(see `likelihood.perplexity`): N tokens have N - 1 predictions there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.core.progress import Progress, no_progress
from errata.data.passages import Passage
from errata.metrics.likelihood import score_token_rows
from errata.metrics.scores import Amount
from errata.models.families import positions_of
from errata.models.tokens import TOKENS_AT_ONCE, TokenRow, check_ids
from errata.patches.edited_model import EditedModel

WINDOW = 2048
"""Upper bound of the default window: lm-eval's for models of unknown context length."""
LOGITS_AT_ONCE = 2**27
"""Maximum number of logits in a forward pass."""
FIGURES = ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
LONGEST_WORD = 100
"""Mean bytes per word above which a text is not split into words by white space."""
ROWS_AT_ONCE = 64
"""Windows per report of progress."""


class Windowed(NamedTuple):
    """Length and stride of the windows of a text, in tokens."""

    window: int
    stride: int


class PerplexityResult(NamedTuple):
    """Negative log-likelihoods of the windows of texts, and what they are divided by."""

    nll: tuple[float, ...]
    """Σ -log p over the tokens that each window predicts, nats."""
    tokens: tuple[int, ...]
    """Number of tokens that each window predicts."""
    words: int
    bytes: int
    cut: Windowed

    def figures(self) -> dict[str, Amount]:
        """Return the figures of `FIGURES`, without word perplexity for a text without spaces.

        Raises `ErrataError` for a perplexity beyond the range of floats.
        Intervals: windows are resampled 2,000 times; words and bytes per token are held fixed.
        `n` is the number of tokens, words or bytes.
        """
        counted = sum(self.tokens)
        rate, low, high = self._rates()
        found = {}
        for name, n in (("token", counted), ("word", self.words), ("byte", self.bytes)):
            if name == "word" and self.bytes > LONGEST_WORD * n:
                continue
            try:
                value, least, most = (math.exp(each * counted / n) for each in (rate, low, high))
            except OverflowError:
                raise ErrataError(
                    f"the perplexity per {name} is beyond the range of floats: "
                    f"exp({high * counted / n:.0f})",
                    "is this the language of the model, and are its weights sound?",
                ) from None
            found[f"{name}_perplexity"] = Amount(value=value, low=least, high=most, n=n)
        scale = counted / self.bytes / math.log(2)
        found["bits_per_byte"] = Amount(
            value=rate * scale, low=low * scale, high=high * scale, n=self.bytes
        )
        return found

    def _rates(self) -> tuple[float, float, float]:
        """Return nats per token and the ends of the interval."""
        nll, tokens = np.asarray(self.nll), np.asarray(self.tokens, dtype=float)
        rate, count = float(nll.sum() / tokens.sum()), len(nll)
        random = np.random.default_rng(0)
        drawn = [random.integers(0, count, count) for _ in range(2000)]
        low, high = np.percentile([nll[i].sum() / tokens[i].sum() for i in drawn], [2.5, 97.5])
        return rate, min(rate, float(low)), max(rate, float(high))


def cut_for(
    model: PreTrainedModel, window: int | None = None, stride: int | None = None
) -> Windowed:
    """Return the window and stride to use; raises `ErrataError` if they are invalid."""
    most = positions_of(model)
    wide = min(most, WINDOW) if window is None else window
    step = wide if stride is None else stride
    if not 1 <= wide <= most:
        raise ErrataError(
            f"a window of {wide} tokens exceeds the model's context of {most} tokens",
            f"give a window between 1 and {most}",
        )
    check_stride(wide, step)
    return Windowed(wide, step)


def check_stride(window: int, stride: int) -> None:
    """Raise `ErrataError` for a stride that would leave tokens between windows unread."""
    if not 1 <= stride <= window:
        raise ErrataError(
            f"a stride of {stride} tokens skips tokens in windows of {window}",
            f"give a stride between 1 and {window}",
        )


def windows_of(ids: Sequence[int], first: int, cut: Windowed) -> list[TokenRow]:
    """Return rows of a text's tokens whose targets together are every token once.

    `first` is the token before the text; it is not predicted.
    """
    rows, stream, done = [], (first, *ids), 0
    while done < len(ids):
        end = min(done + (cut.stride if done else cut.window), len(ids))
        start = max(0, end - cut.window)
        rows.append(TokenRow(stream[start:end], done - start, tuple(ids[done:end])))
        done = end
    return rows


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to put before a text: BOS, or EOS if there is none.

    Raises `ErrataError` if the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ErrataError(
        "the tokenizer has neither BOS nor EOS to put before a text",
        "set tokenizer.bos_token to the token that texts began with in training",
    )


def read_texts(
    edited: EditedModel,
    passages: Sequence[Passage],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress = no_progress,
) -> PerplexityResult:
    """Return the likelihood of texts, window by window; see the top of this module.

    Raises `ErrataError` for an invalid window or stride, and for texts without tokens.
    """
    model, tokenizer = edited.model, edited.tokenizer
    cut, first = cut_for(model, window, stride), first_token(tokenizer)
    rows = []
    for each in passages:
        ids = tokenizer(each.text, add_special_tokens=False, verbose=False)["input_ids"]
        check_ids(tokenizer, [first, *ids])
        rows += windows_of(ids, first, cut)
    if not rows:
        raise ErrataError("the texts have no tokens", "give a text that is not empty")
    vocabulary = model.config.get_text_config().vocab_size
    budget = max(cut.window, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocabulary))
    nll: list[float] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        found = score_token_rows(model, some, budget)
        nll += [each.nll * len(row.targets) for each, row in zip(found, some, strict=True)]
        progress(start + len(some), len(rows))
    return PerplexityResult(
        tuple(nll),
        tuple(len(row.targets) for row in rows),
        sum(each.words for each in passages),
        sum(each.bytes for each in passages),
        cut,
    )
