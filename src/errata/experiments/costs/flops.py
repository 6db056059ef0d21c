"""The FLOPs of scoring cases and of generating answers, counted.

FLOPs (2 for a multiplication and an addition) are counted from the model's matrices and the
tokens that pass through them. Attention's own products are left out; they are negligible for
short texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.data.case import Case
from errata.metrics.base import LikelihoodMetric, Metric
from errata.metrics.likelihood import answer_rows, tokens_scored
from errata.metrics.prompts import prompts_of
from errata.models.shape import ModelShape
from errata.patches.edited_model import EditedModel

OBJECT_BYTES = 25_000
"""Approximate memory of a request in a run: its texts, their tokens, its scores."""


def asking_flops(
    shape: ModelShape,
    edited: EditedModel,
    metrics: Sequence[Metric[Any]],
    cases: Sequence[Case],
) -> float:
    """Return the FLOPs of the (prompt, answer) pairs that metrics on likelihoods ask of cases."""
    forced = [metric for metric in metrics if isinstance(metric, LikelihoodMetric)]
    pairs = [pair for metric in forced for case in cases for pair in metric.pairs(case)]
    rows = answer_rows(edited, pairs)
    return shape.forward(tokens_scored(rows), sum(len(row.targets) for row in rows))


def written_tokens(cases: Sequence[Case], answer: int, text: int) -> int:
    """Return the maximum number of generated tokens: answers to all prompts, and free texts."""
    prompts = sum(len(prompts_of(case)) for case in cases)
    return prompts * answer + text * sum(len(case.generation_prompts) for case in cases)
