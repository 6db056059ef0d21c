"""Logit lens: the next-token prediction of each block, at every token.

The final norm and the output head are applied to the output of a block instead of the last one's,
through the model's own forward (nostalgebraist 2020; soft-capping, scaling and biases included).
At the last block this is the model's prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.models.families import family_of
from errata.models.hooks import frozen
from errata.models.recorded_run import RecordedRun
from errata.tracing.question import Question

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Lens:
    """Next-token predictions of each block after each token of a prompt."""

    tokens: tuple[str, ...]
    """Display form of the prompt's tokens."""
    answer: str
    """The token whose probability is recorded."""
    answers: Array
    """Its probability: (tokens, blocks)."""
    said: tuple[tuple[str, ...], ...]
    """The likeliest next token: (tokens, blocks)."""
    likeliest: Array
    """Its probability: (tokens, blocks)."""

    def as_json(self) -> dict[str, Any]:
        """Return all values as nested lists: tokens, then blocks."""
        return {
            "answers": self.answers.tolist(),
            "said": [list(row) for row in self.said],
            "likeliest": self.likeliest.tolist(),
        }


@torch.no_grad()
def read_lens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    answer: int | None = None,
) -> Lens:
    """Apply the logit lens to the prompt of a question.

    `answer` is the token whose probability is recorded; by default the first token of the
    question's answer.
    """
    followed = question.targets[0] if answer is None else answer
    ids = torch.tensor([question.ids[: question.length]], device=model.device)
    shares, best, said = [], [], []
    with frozen(model):
        run = RecordedRun.of(model, ids)
        keep = torch.ones_like(ids, dtype=torch.bool)
        for block in range(family_of(model).block_count(model)):
            suffix = run.suffix_run(block, 0)
            logits = suffix.run(suffix.states, keep, last_block=block)  # (tokens, vocabulary)
            likely = logits.float().softmax(-1).cpu()
            shares.append(likely[:, followed])
            top, index = likely.max(-1)
            best.append(top)
            said.append([str(tokenizer.decode([i])) for i in index.tolist()])
    return Lens(
        tokens=question.tokens,
        answer=str(tokenizer.decode([followed])),
        answers=torch.stack(shares, dim=1).numpy(),
        said=tuple(tuple(row) for row in zip(*said, strict=True)),
        likeliest=torch.stack(best, dim=1).numpy(),
    )
