"""How much memory a trace takes, and how many corrupted runs and cells at once fit into it.

All of it is known before the work starts, from the model's shape and the length of the question;
the same model and question always give the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from errata.models.shape import ModelShape

MEMORY = 2**30
"""Bytes that what is kept of the runs may take, and as many again for a pass, beside the model."""
STREAMS, MLPS, LOGITS = 8, 3, 3
"""Vectors as wide as the model, as its MLP, and as the vocabulary (float32) that a pass holds."""


class Room(NamedTuple):
    """What one row takes, in bytes."""

    recorded: int
    """Of what is kept: per block states, keys and values, and modules' outputs where needed."""
    carried: int
    """Of a pass: keys and values of all tokens, and logits."""
    token: int
    """Of a pass, for each token from the restored one on."""

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: int, targets: int, contributions: bool) -> Room:
        """Measure the row of a question: its tokens, those of its answer, what is recorded."""
        shape, size = ModelShape.of(model), model.dtype.itemsize
        cache = shape.blocks * tokens * shape.kept * size
        states = shape.blocks * tokens * shape.width * size
        return cls(
            recorded=cache + states * (3 if contributions else 1),
            carried=cache + LOGITS * targets * shape.vocabulary * 4,
            token=(STREAMS * shape.width + MLPS * shape.mlp) * size,
        )

    def runs_within(self, memory: int) -> int:
        """Return how many corrupted runs can be kept beside the clean one, at least one."""
        return max(1, memory // self.recorded - 1)

    def rows_within(self, memory: int, suffix: int) -> int:
        """Return how many rows of so many tokens a pass can hold, at least one."""
        return max(1, memory // (self.carried + suffix * self.token))
