"""Corruption of the subject: noise on the embeddings of its tokens.

The noise is drawn as in kmeng01/rome: NumPy's RandomState, one array (samples, tokens, width) per
fact, normal or uniform between -1 and 1, times the level. For a seed it is bit-identical for
every cell, kind and run.
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
"""Tokens per batch when embeddings are read."""


def noise_of(settings: TraceSettings, tokens: int, width: int) -> NDArray[np.float64]:
    """Draw unscaled noise for a subject: (samples, tokens, width), float64."""
    source = np.random.RandomState(settings.noise_seed)
    shape = (settings.samples, tokens, width)
    return source.randn(*shape) if settings.noise == "gaussian" else source.uniform(-1, 1, shape)


def corrupting(noise: NDArray[np.float64], first: int, replace: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that corrupts embeddings (1 + samples, tokens, width) except in row 0.

    `noise` (samples, subject tokens, width) is already scaled; the subject starts at token `first`.
    """

    def corrupt(state: Tensor) -> Tensor:
        double = torch.float64 if state.device.type != "mps" else torch.float32
        added = torch.as_tensor(noise).to(state.device, double)
        place = slice(first, first + noise.shape[1])
        state = state.clone()
        clean = 0 if replace else state[1:, place].to(double)
        state[1:, place] = (clean + added).to(state.dtype)
        return state

    return corrupt


@torch.no_grad()
def embedding_deviation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subjects: Sequence[str]
) -> float:
    """Return the standard deviation of all entries of the subjects' embeddings.

    As published: each subject is encoded separately, with leading special tokens, and the standard
    deviation is the unbiased one around the mean of all entries.
    """
    site = Site(model.get_submodule(family_of(model).embedding), "output")
    counts = Counter(token for subject in subjects for token in encode(tokenizer, subject).ids)
    tokens, entries, total, squares = sorted(counts), 0, 0.0, 0.0
    with frozen(model):  # embeddings do not depend on context
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
    """Return `embedding_deviation`, cached in the folder `cache`.

    The cache key is a hash of the embedding matrix, the tokenizer and the subjects. Raises
    `ErrataError` without subjects.
    """
    if not subjects:
        raise ErrataError("there are no subjects to compute the noise level from", "name a dataset")
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
