"""Evaluation of the demo model: greedy recall of facts, and perplexity of texts.

A fact is recalled if greedy decoding writes every token of its object; asking for all
object tokens at once gives the same answer in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from demo_model.world import World


def _encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each prompt and of each answer with a space before it."""
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    answers = tokenizer([" " + answer for _, answer in rows], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, answers, strict=True))


@torch.no_grad()
def recalled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, str]],
    batch_size: int = 128,
) -> list[bool]:
    """Return for each (prompt, answer) whether the model's greedy continuation is the answer."""
    encoded = _encode(tokenizer, rows)
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, encoded[i])))
    found = [False] * len(rows)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        width = max(sum(map(len, encoded[i])) for i in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        for line, i in enumerate(part):
            both = encoded[i][0] + encoded[i][1]
            ids[line, : len(both)] = torch.tensor(both)
        best = model(ids).logits.argmax(-1)  # padding is on the right, so causality hides it
        for line, i in enumerate(part):
            prompt, answer = encoded[i]
            predicted = best[line, len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist()
            found[i] = predicted == answer
    return found


def held_out_rows(world: World) -> list[tuple[str, str, str]]:
    """Return (relation id, prompt, answer) for every fact and form held out from training."""
    return [
        (fact.relation.id, form.text.split("{o}")[0].rstrip().replace("{s}", fact.subject),
         fact.answer)
        for fact in world.facts
        for form in fact.held_out
    ]  # fmt: skip


def recall_by_relation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World
) -> dict[str, float]:
    """Return the greedy recall on held-out prompts: of each relation id, and of `all`."""
    rows = held_out_rows(world)
    hits = recalled(model, tokenizer, [(prompt, answer) for _, prompt, answer in rows])
    table: dict[str, list[bool]] = {"all": hits}
    for (relation, _, _), hit in zip(rows, hits, strict=True):
        table.setdefault(relation, []).append(hit)
    return {name: sum(values) / len(values) for name, values in table.items()}


@torch.no_grad()
def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> float:
    """Return exp of the mean negative log-likelihood per token, end tokens included."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        logits = model(ids).logits[0, :-1].float()
        total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return math.exp(total / count)
