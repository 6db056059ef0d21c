"""Likelihoods of answers after prompts (teacher forcing), in batches by length.

A row of token ids that is a prefix of another row (the same prompt with another target, a prompt
that several cases share) is read off that other row: in a causal model later tokens change
nothing before them. So the two targets of a prompt cost one row unless both are longer than a
token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.families import positions_of
from errata.models.hooks import frozen, logits_at, replaced
from errata.models.products import fast_products
from errata.models.tokens import (
    TOKENS_AT_ONCE,
    TokenRow,
    batches_by_length,
    encode,
    pad_right,
    split_target,
)
from errata.patches.edited_model import EditedModel


class Likelihood(NamedTuple):
    """The likelihood of an answer after a prompt."""

    nll: float
    """Mean negative log-likelihood per answer token, nats."""
    likeliest: bool
    """Whether every answer token is the argmax given the tokens before it."""
    correct: tuple[bool, ...] = ()
    """Whether each answer token is the argmax."""


def likelihoods(
    edited: EditedModel, pairs: Sequence[tuple[str, str]], budget: int = TOKENS_AT_ONCE
) -> list[Likelihood]:
    """Return the likelihood of the answer of each (prompt, answer) pair.

    Answers include their separator, prompts pass through `EditedModel.rendered`; `budget` is the
    maximum number of tokens per batch. Raises `ErrataError` for pairs longer than the context.
    """
    rows = answer_rows(edited, pairs)
    room = positions_of(edited.model)
    for (prompt, _), row in zip(pairs, rows, strict=True):
        if len(row.ids) > room:
            raise ErrataError(
                f"{prompt[:60]!r}… is {len(row.ids)} tokens long with its answer; "
                f"the model's context is {room} tokens",
                "shorten the prompt, or leave its record out",
            )
    return score_token_rows(edited.model, rows, budget)


def answer_rows(edited: EditedModel, pairs: Sequence[tuple[str, str]]) -> list[TokenRow]:
    """Encode (prompt, answer) pairs; prompts pass through `EditedModel.rendered`."""
    return [
        answer_row(edited.tokenizer, edited.rendered(prompt), edited.following(prompt, answer))
        for prompt, answer in pairs
    ]


def answer_row(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> TokenRow:
    """Encode a prompt with its answer as one row, whose targets are the answer's tokens."""
    ids, targets = split_target(tokenizer, prompt, answer)
    return TokenRow(ids + targets[:-1], len(ids) - 1, targets)


@torch.no_grad()
def score_token_rows(
    model: PreTrainedModel, rows: Sequence[TokenRow], budget: int = TOKENS_AT_ONCE
) -> list[Likelihood]:
    """Return the likelihood of each row's targets at its last `len(targets)` positions.

    Raises `ErrataError` if logits are NaN in the model's dtype.
    """
    found: dict[int, Likelihood] = {}
    shared = _shared(rows)
    with frozen(model), replaced(fast_products(model)):
        for held in _batches(rows, list(shared), budget):
            members = [(line, i) for line, holder in enumerate(held) for i in shared[holder]]
            ids = pad_right([rows[i].ids for i in held], model.device)
            found.update(_read(model, ids, [(line, i, rows[i]) for line, i in members]))
    return [found[i] for i in range(len(rows))]


def tokens_scored(rows: Sequence[TokenRow], budget: int = TOKENS_AT_ONCE) -> int:
    """Return the number of tokens, padding included, that `score_token_rows` runs."""
    batches = _batches(rows, list(_shared(rows)), budget)
    return sum(len(held) * max(len(rows[i].ids) for i in held) for held in batches)


def _batches(rows: Sequence[TokenRow], held: Sequence[int], budget: int) -> list[list[int]]:
    batches = batches_by_length([len(rows[i].ids) for i in held], budget)
    return [[held[i] for i in batch] for batch in batches]


def _shared(rows: Sequence[TokenRow]) -> dict[int, list[int]]:
    """Return, per row that must run, the rows that are read off it, itself included."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].ids, reverse=True)
    shared: dict[int, list[int]] = {}
    holder = -1
    for i in order:  # in this order a row follows those that it is a prefix of
        if holder < 0 or rows[holder].ids[: len(rows[i].ids)] != rows[i].ids:
            holder = i
        shared.setdefault(holder, []).append(i)
    return shared


def _read(
    model: PreTrainedModel, ids: Tensor, members: Iterable[tuple[int, int, TokenRow]]
) -> dict[int, Likelihood]:
    members = list(members)
    keep = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    for line, _, row in members:
        keep[line, len(row.ids) - len(row.targets) : len(row.ids)] = True
    logits = logits_at(
        model, keep, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    )
    log_probs = logits.float().log_softmax(-1)  # (kept positions, vocabulary)
    index = (keep.flatten().cumsum(0) - 1).view(keep.shape).cpu()
    wanted = torch.cat(
        [index[line, len(row.ids) - len(row.targets) : len(row.ids)] for line, _, row in members]
    ).to(ids.device)
    targets = torch.tensor([t for _, _, row in members for t in row.targets], device=ids.device)
    nll = -log_probs[wanted, targets].cpu().double()
    if nll.isnan().any():
        raise ErrataError(
            f"the model's logits are not finite in {model.dtype}",
            "load it in a wider dtype: --dtype float32, or bfloat16",
        )
    right = (log_probs.argmax(-1)[wanted] == targets).tolist()
    found, start = {}, 0
    for _, i, row in members:
        end = start + len(row.targets)
        hits = tuple(right[start:end])
        found[i] = Likelihood(float(nll[start:end].mean()), all(hits), hits)
        start = end
    return found


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int = 100
) -> float:
    """Return exp(-Σ log p / N) of a text truncated to `max_tokens` tokens, as in kmeng01/rome.

    The sum runs over the N - 1 tokens that have a predecessor while N counts the first one as
    well, so this is slightly below the usual perplexity. Raises `ErrataError` for a text of less
    than two tokens.
    """
    ids = encode(tokenizer, text).ids[:max_tokens]
    if len(ids) < 2:
        raise ErrataError(
            f"the text {text!r:.60} is too short for a perplexity", "give at least two tokens"
        )
    row = TokenRow(ids[:-1], 0, ids[1:])
    (found,) = score_token_rows(model, [row])
    return float(torch.tensor(found.nll * len(row.targets) / len(ids), dtype=torch.float64).exp())
