"""Batched text generation: greedy or beam-search answers, and sampled continuations.

Teacher forcing scores tokens *given* the start of the answer; users see generated text. So prompts
are also continued until the model emits an end-of-sequence token, in batches padded on the left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from errata.models.families import positions_of
from errata.models.hooks import frozen
from errata.models.tokenizer import pad_id
from errata.models.tokens import TOKENS_AT_ONCE, batches_by_length, encode


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 32,
    budget: int = TOKENS_AT_ONCE,
    *,
    beams: int = 1,
) -> list[str]:
    """Return the continuation of each prompt, of at most `max_new_tokens` tokens.

    Decoding is greedy, or beam search with `beams` > 1. Equal prompts run once.
    """
    encoded = [encode(tokenizer, prompt).ids for prompt in prompts]
    distinct = sorted(set(encoded))
    found: dict[tuple[int, ...], str] = {}
    lengths = [len(ids) + max_new_tokens for ids in distinct]
    for batch in batches_by_length(lengths, max(1, budget // beams)):
        # Near the maximum position, each row has its own limit and runs alone.
        fits = max(lengths[i] for i in batch) <= positions_of(model)
        for group in [batch] if fits else [[i] for i in batch]:
            rows = [distinct[i] for i in group]
            room = min(max_new_tokens, max(1, positions_of(model) - max(map(len, rows))))
            settings = _settings(model, tokenizer, stop=True, max_new_tokens=room, num_beams=beams)
            for ids, new in zip(rows, _generate(model, rows, settings), strict=True):
                found[ids] = str(tokenizer.decode(new, skip_special_tokens=True))
    return [found[ids] for ids in encoded]


def free_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int = 100,
    top_k: int = 5,
    seed: int = 0,
    budget: int = TOKENS_AT_ONCE,
    *,
    rendered: Sequence[str] | None = None,
) -> list[str]:
    """Return each prompt with a sampled continuation, `tokens` tokens together.

    Samples from the `top_k` most likely tokens and ignores end-of-sequence tokens, as kmeng01/rome
    does for fluency and consistency. Prompts of equal length share a batch. `rendered` are the
    prompts as given to the model; text that they add is not returned and not counted.
    """
    room = positions_of(model)
    tokens = min(tokens, room)
    plain = [encode(tokenizer, prompt).ids for prompt in prompts]
    encoded = plain if rendered is None else [encode(tokenizer, text).ids for text in rendered]
    by_length: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (ids, shown) in enumerate(zip(encoded, plain, strict=True)):
        by_length[len(ids), min(tokens - len(shown), room - len(ids))].append(i)
    texts = list(prompts)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for (length, new_tokens), members in sorted(by_length.items()):
            if new_tokens < 1:
                continue
            sampling = {"do_sample": True, "top_k": top_k} if top_k > 1 else {}
            settings = _settings(
                model, tokenizer, stop=False, max_new_tokens=new_tokens, **sampling
            )
            size = max(1, budget // (length + new_tokens))
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                rows = [encoded[i] for i in batch]
                for i, new in zip(batch, _generate(model, rows, settings), strict=True):
                    full_ids = [*plain[i], *new.tolist()]
                    texts[i] = str(tokenizer.decode(full_ids, skip_special_tokens=True))
    return texts


def _settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, stop: bool, **values: Any
) -> dict[str, Any]:
    """Return the complete generation settings, none left to the checkpoint's defaults."""
    ends = ends_of_sequence(model, tokenizer)
    return {
        "do_sample": False,
        "num_beams": 1,
        "temperature": 1.0,
        "top_k": None,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "pad_token_id": pad_id(tokenizer, *ends),
        "eos_token_id": ends if stop and ends else None,
        **values,
    }


def ends_of_sequence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a text: the checkpoint's, else the tokenizer's."""
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [tokenizer.eos_token_id if end is None else end]
    return [token for token in ends if isinstance(token, int) and token >= 0]


@contextmanager
def default_settings(model: PreTrainedModel, **values: Any) -> Iterator[None]:
    """Replace the generation settings of the checkpoint by `values` within a `with` block.

    `generate` fills the settings that it is not given from those of the checkpoint.
    """
    original, model.generation_config = model.generation_config, GenerationConfig(**values)
    try:
        yield
    finally:
        model.generation_config = original


@torch.no_grad()
def _generate(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], settings: dict[str, Any]
) -> Tensor:
    """Generate from rows padded on the left; return the new tokens, (rows, new), int64."""
    width, pad = max(map(len, rows)), settings["pad_token_id"]
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    with frozen(model), default_settings(model):
        out: Tensor = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=GenerationConfig(**settings),
        )
    return out[:, width:]
