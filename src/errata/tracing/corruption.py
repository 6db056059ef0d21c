"""How the subject of a fact is corrupted: noise on its tokens' embeddings.

The noise is what kmeng01/rome draws: numpy's RandomState, one array of (samples, tokens, width)
per fact, normal or uniform between -1 and 1, times the level. With the same seed it is the same
to the bit for every cell of a trace, every kind, and every run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.core.files import write_text
from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, frozen, record
from errata.models.identity import tensor_hash, tokenizer_hash
from errata.models.tokens import encode
from errata.tracing.settings import TraceSettings

AT_ONCE = 1024
"""Tokens whose embeddings are read together."""


def noise_of(settings: TraceSettings, tokens: int, width: int) -> NDArray[np.float64]:
    """Draw the noise for a subject, not yet scaled: (samples, tokens, width), float64."""
    source = np.random.RandomState(settings.noise_seed)
    shape = (settings.samples, tokens, width)
    return source.randn(*shape) if settings.noise == "gaussian" else source.uniform(-1, 1, shape)


def corrupting(noise: NDArray[np.float64], first: int, replace: bool) -> Callable[[Tensor], Tensor]:
    """Return the change that corrupts embeddings (1 + samples, tokens, width) in all rows but 0.

    `noise` (samples, subject tokens, width) is scaled; the subject begins at token `first`.
    """

    def corrupt(state: Tensor) -> Tensor:
        double = torch.float64 if state.device.type != "mps" else torch.float32
        added = torch.as_tensor(noise).to(state.device, double)
        place = slice(first, first + noise.shape[1])
        state = state.clone()
        kept = 0 if replace else state[1:, place].to(double)
        state[1:, place] = (kept + added).to(state.dtype)
        return state

    return corrupt


@torch.no_grad()
def embedding_deviation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subjects: Sequence[str]
) -> float:
    """Return the standard deviation of all entries of the embeddings of subjects.

    As published: each subject is encoded alone, special tokens in front included, and the
    deviation is the unbiased one around the mean of all entries.
    """
    site = Site(model.get_submodule(family_of(model).embedding), "output")
    counts = Counter(token for subject in subjects for token in encode(tokenizer, subject).ids)
    tokens, entries, total, squares = sorted(counts), 0, 0.0, 0.0
    with frozen(model):  # the embedding works on each token alone, so rows do not matter
        for first in range(0, len(tokens), AT_ONCE):
            some = tokens[first : first + AT_ONCE]
            ids = torch.tensor(some, device=model.device)[:, None]
            rows = first_tensor(record(model, ids, [site])[0])[:, 0].double().cpu()  # (some, d)
            often = torch.tensor([counts[token] for token in some], dtype=rows.dtype)
            entries += int(often.sum()) * rows.shape[-1]
            total += float(often @ rows.sum(-1))
            squares += float(often @ rows.square().sum(-1))
    return math.sqrt(max(0.0, squares - total * total / entries) / (entries - 1))


def kept_deviation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[str],
    cache: Path | None = None,
) -> float:
    """Return `embedding_deviation`, found in the folder `cache` if it was measured before.

    It is kept under the identity of the embedding matrix, the tokenizer and the subjects.
    """
    if not subjects:
        raise ErrataError("there are no subjects to measure embeddings of", "name a dataset")
    if cache is None:
        return embedding_deviation(model, tokenizer, subjects)
    embedding = model.get_submodule(family_of(model).embedding).get_parameter("weight")
    identity = {
        "embedding": tensor_hash(embedding),
        "dtype": str(embedding.dtype),
        "tokenizer": tokenizer_hash(tokenizer),
        "subjects": hashlib.sha256("\0".join(subjects).encode()).hexdigest(),
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    path = cache / f"{name}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["deviation"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = embedding_deviation(model, tokenizer, subjects)
    write_text(path, json.dumps({**identity, "count": len(subjects), "deviation": found}) + "\n")
    return found
