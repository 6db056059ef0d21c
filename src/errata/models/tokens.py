"""A prompt's tokens: its ids, the position of the subject in them, and the target's tokens.

Both come from the tokenizer: positions from character offsets, targets from encoding prompt and
target together and checking that the prompt's own tokens did not change. So a BOS token, a
SentencePiece dummy prefix, a missing space or a subject that occurs twice need no special case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.tokenizer import embedding_rows

TOKENS_AT_ONCE = 4096
"""Default number of padded tokens (rows x longest) per forward pass."""

Position = Literal["subject_first", "subject_last", "subject_first_after_last", "last"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, including special tokens at its start, with character offsets."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TokenRow:
    """One row of token ids with the position that an edit acts on.

    `targets` are to be predicted at the last `len(targets)` positions of `ids`.
    """

    ids: tuple[int, ...]
    position: int
    targets: tuple[int, ...] = ()

    @property
    def key(self) -> TokenRow:
        """The row truncated after `position`: all that a hidden state there depends on."""
        return TokenRow(self.ids[: self.position + 1], self.position)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Encode a text to be continued, with special tokens at its start but not at its end.

    Raises `ErrataError` for a tokenizer without character offsets and for text that is not Unicode.
    """
    if not tokenizer.is_fast:
        raise ErrataError(
            f"the tokenizer {type(tokenizer).__name__} has no character offsets",
            "use the model's fast tokenizer (tokenizer.json)",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ErrataError(
            f"{text!a:.60} contains a character that is not valid Unicode",
            "is the text UTF-8?",
        ) from None
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    special = set(tokenizer.all_special_ids)
    while len(ids) > 1 and ids[-1] in special and offsets[-1][0] == offsets[-1][1]:
        ids.pop()
        offsets.pop()
    check_ids(tokenizer, ids)
    return Encoded(tuple(ids), tuple((start, end) for start, end in offsets))


def check_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """Raise `ErrataError` for an id for which the tokenizer's model has no embedding."""
    rows, largest = embedding_rows(tokenizer), max(ids, default=0)
    if rows is not None and largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ErrataError(
            f"the model has no embedding for the token {token!r}: its id is {largest}, and the "
            f"embedding has {rows} rows",
            "leave it out, or load the tokenizer of this model",
        )


def position_of(encoded: Encoded, span: tuple[int, int], where: Position) -> int:
    """Return the index of the token at `where`, given the subject's character range `span`.

    `subject_first_after_last` is the subject's last token when no token follows it.
    """
    if where == "last":
        return len(encoded.ids) - 1
    start, end = span
    inside = [i for i, (left, right) in enumerate(encoded.offsets) if left < end and right > start]
    if not inside:
        raise ErrataError(
            f"the tokenizer has no token for the characters {start} to {end}",
            "does the subject consist of characters that this tokenizer drops?",
        )
    if where == "subject_first":
        return inside[0]
    return min(inside[-1] + (where == "subject_first_after_last"), len(encoded.ids) - 1)


def split_target(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of `text` and those of `answer` as it follows `text`; see `answer_ids`."""
    prompt = encode(tokenizer, text).ids
    return prompt, answer_ids(tokenizer, text, prompt, answer)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, prompt: tuple[int, ...], answer: str
) -> tuple[int, ...]:
    """Return the ids of `answer` as it follows `text`, whose ids are `prompt`.

    Both are encoded together. Where that changes the tokens of `text` itself (a merge across the
    boundary), the answer is encoded after a neutral anchor instead, so that the prompt has the
    tokens that it has alone. Raises `ErrataError` when the answer has no tokens.
    """
    for before in (text, "a", ".", "\n"):
        anchor = prompt if before == text else encode(tokenizer, before).ids
        joint = encode(tokenizer, before + answer).ids
        if joint[: len(anchor)] == anchor and len(joint) > len(anchor):
            return joint[len(anchor) :]
    raise ErrataError(
        f"the tokenizer has no tokens for the answer {answer!r} after {text!r}",
        "choose another target",
    )


def pad_right(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> Tensor:
    """Stack rows of ids, padded on the right with `fill`: (rows, longest), int64.

    In a causal model no token attends to those on its right, so no mask is needed as long as only
    real positions are read.
    """
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def batches_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group row indices into batches of at most `budget` padded tokens, or of one longer row.

    Rows are sorted by length, then index: the grouping is a pure function of its arguments. A batch
    is the unit in which work is done, recorded and resumed.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[index] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
