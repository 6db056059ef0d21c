"""How much memory a trace takes, and how many corrupted runs and cells at once fit into it.

All of it is known before the work starts, from the model's shape and the length of the question;
the same model and question always give the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from errata.family import family_of, width_of

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
        family, config = family_of(model), model.config.get_text_config()
        blocks, size = family.block_count(model), model.dtype.itemsize
        width, wide = config.hidden_size, width_of(family.write(model, 0))
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // config.num_attention_heads
        cache = 2 * blocks * tokens * heads * head * size
        states = blocks * tokens * width * size
        return cls(
            recorded=cache + states * (3 if contributions else 1),
            carried=cache + LOGITS * targets * config.vocab_size * 4,
            token=(STREAMS * width + MLPS * wide) * size,
        )

    def runs_within(self, memory: int) -> int:
        """Return how many corrupted runs can be kept beside the clean one, at least one."""
        return max(1, memory // self.recorded - 1)

    def rows_within(self, memory: int, suffix: int) -> int:
        """Return how many rows of so many tokens a pass can hold, at least one."""
        return max(1, memory // (self.carried + suffix * self.token))
