"""From words to token ids: where the subject stands, and what the target's tokens are.

Everything is found by asking the tokenizer: positions come from character offsets,
targets from encoding prompt and target together and checking that the prompt's own
tokens did not change. So a BOS token, a SentencePiece dummy prefix, a missing space or
a subject that occurs twice need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.core.errors import ErrataError

TOKENS_AT_ONCE = 4096
"""Rows x tokens of one forward pass, where nothing else is said."""

Position = Literal["subject_first", "subject_last", "subject_first_after_last", "last"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, special tokens at its start included, with character offsets."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TokenRow:
    """One line of token ids with the place that an edit acts on.

    `targets` shall be predicted at the last `len(targets)` places of `ids`.
    """

    ids: tuple[int, ...]
    position: int
    targets: tuple[int, ...] = ()

    @property
    def key(self) -> TokenRow:
        """The row cut after `position`: all that a key or a state at `position` depends on."""
        return TokenRow(self.ids[: self.position + 1], self.position)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Encode a text to be continued: special tokens in front are kept, those at the end dropped.

    Raises `ErrataError` for a tokenizer that cannot tell character offsets.
    """
    if not tokenizer.is_fast:
        raise ErrataError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets",
            "use the model's fast tokenizer (tokenizer.json)",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ErrataError(
            f"{text!a:.60} holds a character that is none", "is the text UTF-8?"
        ) from None
    coded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(coded["input_ids"]), list(coded["offset_mapping"])
    special = set(tokenizer.all_special_ids)
    while len(ids) > 1 and ids[-1] in special and offsets[-1][0] == offsets[-1][1]:
        ids.pop()
        offsets.pop()
    return Encoded(tuple(ids), tuple((start, end) for start, end in offsets))


def position_of(encoded: Encoded, span: tuple[int, int], where: Position) -> int:
    """Return the index of the token at `where`, relative to the subject's characters `span`.

    `subject_first_after_last` is the subject's last token when nothing follows it.
    """
    if where == "last":
        return len(encoded.ids) - 1
    start, end = span
    inside = [i for i, (left, right) in enumerate(encoded.offsets) if left < end and right > start]
    if not inside:
        raise ErrataError(
            f"the tokenizer gives no token to the characters {start} to {end}",
            "is the subject made of characters that this tokenizer drops?",
        )
    if where == "subject_first":
        return inside[0]
    return min(inside[-1] + (where == "subject_first_after_last"), len(encoded.ids) - 1)


def split_target(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of `text` and those of `answer` as it follows `text`.

    Both are encoded together; where that changes the tokens of `text` itself (a merge
    across the border), the answer is encoded after a neutral anchor instead, so that
    the prompt keeps the tokens it has when a user types it alone.
    """
    prompt = encode(tokenizer, text).ids
    for before in (text, "a", ".", "\n"):
        anchor = encode(tokenizer, before).ids
        joint = encode(tokenizer, before + answer).ids
        if joint[: len(anchor)] == anchor and len(joint) > len(anchor):
            return prompt, joint[len(anchor) :]
    raise ErrataError(
        f"the tokenizer has no tokens for the answer {answer!r} after {text!r}",
        "choose another wording of the target",
    )


def pad_right(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> Tensor:
    """Stack id rows of unequal length, padded on the right: (rows, longest), int64.

    In a causal model what stands to the right cannot reach what stands to the left, so
    no mask is needed as long as only real places are read.
    """
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def batches_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that rows x longest stays within `budget` tokens (at least one row each).

    Rows are taken in order of length, then of index: the grouping is a pure function of
    its arguments, and the unit in which work is done, recorded and resumed.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[index] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
