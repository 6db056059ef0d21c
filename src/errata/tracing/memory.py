"""Memory use of a trace, and how many corrupted runs and cells fit into a budget.

Computed in advance from the model's shape and the length of the question, so it is deterministic.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from errata.models.shape import ModelShape

MEMORY = 2**30
"""Default budget in bytes for the recorded runs, and again for a forward pass."""
STREAMS, MLPS, LOGITS = 8, 3, 3
"""Vectors of model width, MLP width and vocabulary size (float32) that a forward pass allocates."""


class Room(NamedTuple):
    """Memory per row, in bytes."""

    recorded: int
    """Recorded run: hidden states, keys and values per block, and module outputs if needed."""
    carried: int
    """Forward pass: keys and values of all tokens, or the whole row without these, and logits."""
    token: int
    """Forward pass, per token from the restored one on."""

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: int, targets: int, contributions: bool) -> Room:
        """Estimate a row from the number of prompt and answer tokens and what is recorded."""
        shape, size = ModelShape.of(model), model.dtype.itemsize
        cache = shape.blocks * tokens * shape.cached * size
        states = shape.blocks * tokens * shape.width * size
        token = (STREAMS * shape.width + MLPS * shape.mlp) * size
        carried = cache if shape.cached else tokens * token
        return cls(
            recorded=cache + states * (3 if contributions else 1),
            carried=carried + LOGITS * targets * shape.vocabulary * 4,
            token=token,
        )

    def runs_within(self, memory: int) -> int:
        """Return how many corrupted runs can be recorded besides the clean one, at least one."""
        return max(1, memory // self.recorded - 1)

    def rows_within(self, memory: int, suffix: int) -> int:
        """Return how many rows of `suffix` tokens fit into a forward pass, at least one."""
        return max(1, memory // (self.carried + suffix * self.token))
