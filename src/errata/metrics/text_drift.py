"""How far a changed model has moved on ordinary text: KL(before ‖ now) of its next tokens.

    drift = mean over positions of Σ_v p_before(v) (log p_before(v) - log p_now(v)), in nats

p_before is recorded once. It is 0 for an unchanged model, and needs no right answers: it shows
damage beyond the prompts of a dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.errors import ErrataError
from errata.models.hooks import frozen, logits_at
from errata.models.tokens import TOKENS_AT_ONCE, batches_by_length, encode, pad_right
from errata.patches.edited_model import EditedModel

TEXTS, LENGTH, STEP = 8, 64, 2
"""Number of texts, their length in tokens, and the distance of the positions that are compared."""
LEAST = 8
"""Shortest text, in tokens."""


@dataclass(frozen=True)
class TextDrift:
    """Texts, and the next-token distributions of the model as it was."""

    rows: tuple[tuple[int, ...], ...]
    """Token ids of each text."""
    before: tuple[Tensor, ...]
    """Per text (positions, vocabulary) log-probabilities, float32."""

    @classmethod
    def of(cls, edited: EditedModel, texts: Sequence[str]) -> TextDrift:
        """Record the distributions of a model with its present edits.

        Raises `ErrataError` for texts that are all too short.
        """
        encoded = (encode(edited.tokenizer, text).ids[:LENGTH] for text in texts)
        rows = tuple(ids for ids in encoded if len(ids) >= LEAST)[:TEXTS]
        if not rows:
            raise ErrataError(
                f"the text has no line of at least {LEAST} tokens",
                "give text with longer lines",
            )
        return cls(rows, tuple(_log_probabilities(edited, rows)))

    def of_now(self, edited: EditedModel) -> float:
        """Return the drift of the model with its present edits, in nats per token."""
        total, count = 0.0, 0
        for then, now in zip(self.before, _log_probabilities(edited, self.rows), strict=True):
            total += float((then.exp() * (then - now)).sum(dtype=torch.float64))
            count += len(then)
        return max(0.0, total / count)

    @property
    def tokens(self) -> int:
        """Number of tokens that are run."""
        return sum(map(len, self.rows))


@torch.no_grad()
def _log_probabilities(edited: EditedModel, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the next-token log-probabilities at every `STEP`-th position of each row."""
    found: dict[int, Tensor] = {}
    model = edited.model
    with frozen(model):
        for batch in batches_by_length([len(row) for row in rows], TOKENS_AT_ONCE):
            ids = pad_right([rows[i] for i in batch], model.device)
            keep = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
            for line, i in enumerate(batch):
                keep[line, STEP - 1 : len(rows[i]) : STEP] = True
            logits = logits_at(
                model, keep, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            )
            parts = logits.float().log_softmax(-1).split(keep.sum(1).tolist())
            found.update(zip(batch, parts, strict=True))
    return [found[i] for i in range(len(rows))]
