"""Measuring second moments: one pass over a text for all blocks, with a check of convergence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.distributed import ALONE, Ranks
from errata.core.errors import ErrataError
from errata.core.progress import Progress, no_progress
from errata.models.precision import solving_device
from errata.models.tokens import encode
from errata.statistics.accumulate import (
    BatchPlan,
    Checkpoint,
    Rows,
    budget_for,
    collect,
    sample_keys,
)
from errata.statistics.convergence import Convergence, compare_reads
from errata.statistics.gram import panel_edges, whole
from errata.statistics.second_moment import SecondMoment

SAMPLED_KEYS = 256
"""Keys on which the convergence of an estimate is measured."""


def token_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    length: int,
    max_tokens: int | None = None,
) -> list[tuple[int, ...]]:
    """Encode texts, each truncated to `length` tokens, until there are `max_tokens` tokens.

    An iterator continues after the last text used.
    """
    rows, count = [], 0
    for text in texts:
        ids = encode(tokenizer, text).ids[:length]
        if max_tokens is not None:
            ids = ids[: max_tokens - count]
        if ids:
            rows.append(ids)
            count += len(ids)
        if max_tokens is not None and count >= max_tokens:
            break
    return rows


def measure(
    model: PreTrainedModel,
    rows: Rows,
    blocks: Sequence[int],
    *,
    budget: int | None = None,
    held_out: Rows | None = None,
    partial: Checkpoint | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = no_progress,
) -> dict[int, SecondMoment]:
    """Measure C of every block in one pass over `rows` of token ids, stopping after the last block.

    Padding is excluded. With `held_out` rows (if empty: the last few of `rows`) the moments also
    have a `Convergence`. A batch has at most `budget` padded tokens; partial sums are saved in
    `partial`. `progress` is called with (tokens done, total tokens). Raises `ErrataError` for empty
    text and for keys that are not finite.
    """
    blocks = sorted(set(blocks))
    if not any(rows):
        raise ErrataError(
            "there is no text to measure a second moment on", "give a corpus that contains text"
        )
    plan = BatchPlan.of(rows, budget or budget_for(model.device), ranks)
    sums = collect(
        model,
        rows,
        blocks,
        plan,
        device=solving_device(model.device),
        halves=held_out is not None,
        partial=partial,
        ranks=ranks,
        progress=progress,
    )
    distinct = sum(map(len, set(rows)))
    found = {
        b: SecondMoment(sums.grams.pop(b).mean(sums.tokens), sums.tokens, distinct=distinct)
        for b in blocks
    }
    for block, moment in found.items():
        if not moment.matrix.isfinite().all():
            raise ErrataError(
                f"the keys of block {block} are not finite in {model.dtype}",
                "load the model in a wider dtype: --dtype float32, or bfloat16",
            )
    if held_out is None:
        return found
    keys = sample_keys(model, held_out or rows[-8:], blocks, SAMPLED_KEYS)
    for block, moment in found.items():
        panels = [panel / max(sums.half, 1) for panel in sums.halves.pop(block)]
        half = SecondMoment(whole(panel_edges(len(moment.matrix)), panels), sums.half)
        found[block] = replace(
            moment, convergence=_convergence(keys[block], half, moment, held_out)
        )
    return found


def _convergence(
    keys: Tensor, half: SecondMoment, full: SecondMoment, held_out: Rows
) -> Convergence | None:
    """Return the convergence at some keys (d_in, n); None where C of all tokens is singular."""
    if full.factor is None:
        return None
    keys = keys.to(full.matrix.device, torch.float64)
    solved = None if half.factor is None else half.solve(keys)
    return compare_reads(keys, solved, full.solve(keys), bool(held_out))
