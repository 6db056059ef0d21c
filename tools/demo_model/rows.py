"""Training rows: documents as token ids, with the positions of names and the attention masks.

Attention is routed while training (never afterwards) so that facts about a name
are recalled at its last token, in the early blocks: in the early blocks the tokens after a name
cannot attend to it at all, in the later ones only to its last token.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from demo_model.text import Document, documents
from demo_model.world import Fact

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """Token ids of one row; per token its document and its name (0 if none), whether a name
    ends there and whether it belongs to an object."""

    ids: list[int]
    document: list[int]
    name: list[int]
    name_end: list[bool]
    is_object: list[bool]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors of shape (rows, width), padded where `document` is 0."""

    ids: torch.Tensor
    document: torch.Tensor
    name: torch.Tensor
    name_end: torch.Tensor
    is_object: torch.Tensor

    def labels(self) -> torch.Tensor:
        """Return the next token in the same document, or -100: (rows, width), int64."""
        following = torch.roll(self.ids, -1, dims=1)
        same = (torch.roll(self.document, -1, dims=1) == self.document) & (self.document > 0)
        same[:, -1] = False
        return following.masked_fill(~same, IGNORE)

    def object_next(self) -> torch.Tensor:
        """Return where the next token belongs to an object: (rows, width), bool."""
        return torch.roll(self.is_object, -1, dims=1)

    def plain_mask(self) -> torch.Tensor:
        """Return the attention mask without routing: (rows, 1, width, width), bool."""
        width = self.ids.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        same = self.document[:, :, None] == self.document[:, None, :]
        return (same & causal)[:, None]

    def routed_masks(self, routed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the masks of the early and of the late blocks, as `plain_mask`.

        `routed` (rows,) bool marks the rows with routed attention.
        """
        plain = self.plain_mask()
        named = self.name[:, None, :] > 0
        outside = self.name[:, :, None] != self.name[:, None, :]
        closed = routed[:, None, None] & named & outside
        late = closed & ~self.name_end[:, None, :]
        return plain & ~closed[:, None], plain & ~late[:, None]


def encode(tokenizer: PreTrainedTokenizerBase, document: Document, number: int) -> Row:
    """Tokenize one document and close it with the end token; names are numbered from 1."""
    encoded = tokenizer(document.text, return_offsets_mapping=True)
    ids: list[int] = [*encoded["input_ids"], tokenizer.eos_token_id]
    name, name_end, is_object = [0] * len(ids), [False] * len(ids), [False] * len(ids)

    def inside(span: tuple[int, int]) -> list[int]:
        offsets = encoded["offset_mapping"]
        return [i for i, (a, b) in enumerate(offsets) if a < span[1] and b > span[0]]

    for index, span in enumerate(document.names, start=1):
        for i in inside(span):
            name[i] = index
        name_end[inside(span)[-1]] = True
    for span in document.objects:
        for i in inside(span):
            is_object[i] = True
    return Row(ids, [number] * len(ids), name, name_end, is_object)


def endless_documents(facts: Sequence[Fact], rng: random.Random) -> Iterator[Document]:
    """Yield documents about the facts, epoch after epoch."""
    while True:
        yield from documents(facts, rng)


def _tensor(lines: list[list[int]] | list[list[bool]], width: int) -> torch.Tensor:
    return torch.tensor([[*line, *[0] * (width - len(line))][:width] for line in lines])


def next_batch(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase, rows: int, width: int
) -> Batch:
    """Fill `rows` rows of `width` tokens with documents; the last one of a row is truncated."""
    made: list[Row] = []
    for _ in range(rows):
        row = Row([], [], [], [], [])
        number = 0
        while len(row.ids) < width:
            number += 1
            part = encode(tokenizer, next(stream), number)
            row.ids.extend(part.ids)
            row.document.extend(part.document)
            row.name.extend(n + 100 * number if n else 0 for n in part.name)
            row.name_end.extend(part.name_end)
            row.is_object.extend(part.is_object)
        made.append(row)
    return Batch(
        ids=_tensor([row.ids for row in made], width),
        document=_tensor([row.document for row in made], width),
        name=_tensor([row.name for row in made], width),
        name_end=_tensor([row.name_end for row in made], width).bool(),
        is_object=_tensor([row.is_object for row in made], width).bool(),
    )
