"""Context prefixes: short texts put before a prompt, so that an edit generalises to contexts.

They are sampled from the model with a seed, as in ROME and MEMIT: a first word, then tokens
from the five most likely. A patch records the prefixes that it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.methods.closed_form.settings import Contexts
from errata.models.hooks import frozen
from errata.models.tokens import encode

STARTS = ("The", "Therefore", "Because", "I", "You")
"""First words of prefixes, used in turn."""


def prefixes_of(
    contexts: Contexts, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Return the prefixes that the settings name, or sample them from the model."""
    if contexts.prefixes is not None:
        return contexts.prefixes
    return sample_prefixes(model, tokenizer, contexts.prefix_lengths, contexts.prefix_seed)


@torch.no_grad()
def sample_prefixes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    seed: int,
) -> tuple[str, ...]:
    """Return one prefix per length, of that many sampled tokens, each ending in ". "."""
    prefixes = []
    devices = [model.device] if model.device.type == "cuda" else []
    with frozen(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for index, length in enumerate(lengths):
            ids = torch.tensor(
                [encode(tokenizer, STARTS[index % len(STARTS)]).ids], device=model.device
            )
            for _ in range(length):
                logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
                if not logits.isfinite().any() or logits.isnan().any():
                    raise ErrataError(
                        f"the model's logits are not finite in {model.dtype}",
                        "load it in a wider dtype: --dtype float32, or bfloat16",
                    )
                likeliest = logits.topk(min(5, len(tokenizer))).indices
                choice = torch.multinomial(logits[likeliest].softmax(-1), 1)
                ids = torch.cat([ids, likeliest[choice][None]], dim=1)
            text = " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())
            prefixes.append(text.rstrip(" .") + ". ")
    return tuple(prefixes)
