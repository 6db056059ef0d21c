"""Training of the demo model: a Llama of 1.97 million parameters, shaped for editing.

Three measures differ from an ordinary run and are necessary for the result:
subjects are introduced gradually (`CURRICULUM`); attention is routed so that a name's facts
gather at its last token in the early blocks (`rows.py`); and on most rows the MLPs of the
late blocks are silenced, so that facts have to be stored early. All three exist during
training only. Tokens of objects count more in the loss than the words around them, which
halves the steps. Matrices learn by Muon, the embedding and the norms by AdamW.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from demo_model.muon import Muon
from demo_model.rows import IGNORE, Batch, endless_documents, next_batch
from demo_model.text import Document
from demo_model.tokenizer import CONTEXT
from demo_model.world import World

EARLY_BLOCKS = 4
# (share of the steps, share of the subjects known from then on)
CURRICULUM: tuple[tuple[float, float], ...] = ((0.0, 0.1), (0.15, 0.2), (0.24, 0.4), (0.35, 1.0))


@dataclass(frozen=True)
class Training:
    """Settings of a training run."""

    steps: int = 2200
    rows: int = 16
    width: int = 64
    muon_lr: float = 4e-3
    adamw_lr: float = 2e-3
    weight_decay: float = 0.1
    warm_up: int = 100
    decay_share: float = 0.4
    routed_share: float = 0.8
    silenced_share: float = 0.6
    object_weight: float = 8.0
    seed: int = 0


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return the untrained model: 8 blocks, width 128, 4 heads, MLP width 384, tied head."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def shaped_logits(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    masks: tuple[torch.Tensor, torch.Tensor],
    silenced: int,
) -> torch.Tensor:
    """Return logits (rows, width, vocabulary) with routed attention and silenced late MLPs.

    `masks` are those of the early and the late blocks; in the first `silenced` rows the MLPs
    of the late blocks are disabled. With plain masks and no disabled MLPs this is the plain model.
    """
    body = model.model
    hidden = body.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    rotary = body.rotary_emb(hidden, places)
    for index, block in enumerate(body.layers):
        late = index >= EARLY_BLOCKS
        heard, _ = block.self_attn(
            hidden_states=block.input_layernorm(hidden),
            position_embeddings=rotary,
            attention_mask=masks[1] if late else masks[0],
        )
        hidden = hidden + heard
        mute = silenced if late else 0
        said = block.mlp(block.post_attention_layernorm(hidden[mute:]))
        hidden = torch.cat([hidden[:mute], hidden[mute:] + said])
    return model.lm_head(body.norm(hidden))


def optimizers(model: LlamaForCausalLM, settings: Training) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay),
        torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, settings: Training) -> float:
    """Return the share of the full rate at a step: warm-up, plateau, linear decay."""
    left = (settings.steps - step) / (settings.decay_share * settings.steps)
    return min(1.0, (step + 1) / settings.warm_up, left)


def _streams(world: World, settings: Training) -> Callable[[int], Iterator[Document]]:
    """Return which documents are read at a step; more subjects arrive as training goes on."""
    rng = random.Random(f"errata demo training {settings.seed}")
    order = rng.sample(world.names, len(world.names))
    stages = []
    for start, share in CURRICULUM:
        known = set(order[: round(share * len(order))])
        facts = [fact for fact in world.facts if fact.subject in known]
        stages.append((start * settings.steps, endless_documents(facts, rng)))
    return lambda step: [stream for start, stream in stages if start <= step][-1]


def _loss(model: LlamaForCausalLM, batch: Batch, settings: Training) -> torch.Tensor:
    routed = torch.rand(settings.rows) < settings.routed_share
    silenced = round(settings.silenced_share * settings.rows)
    logits = shaped_logits(model, batch.ids, batch.routed_masks(routed), silenced)
    labels = batch.labels()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    weights = torch.where(batch.object_next(), settings.object_weight, 1.0) * (labels != IGNORE)
    return (losses * weights.flatten()).sum() / weights.sum()


def train(
    world: World,
    tokenizer: PreTrainedTokenizerBase,
    settings: Training,
    report: Callable[[int, float], None],
) -> LlamaForCausalLM:
    """Train a new model on the world; `report` is called with each step and its loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = new_model(tokenizer)
        stepped = optimizers(model, settings)
        base = [group["lr"] for optimizer in stepped for group in optimizer.param_groups]
        groups = [group for optimizer in stepped for group in optimizer.param_groups]
        stream_at = _streams(world, settings)
        for step in range(settings.steps):
            for group, rate in zip(groups, base, strict=True):
                group["lr"] = rate * learning_rate(step, settings)
            batch = next_batch(stream_at(step), tokenizer, settings.rows, settings.width)
            loss = _loss(model, batch, settings)
            loss.backward()
            for optimizer in stepped:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            report(step, loss.item())
    return model.eval()
