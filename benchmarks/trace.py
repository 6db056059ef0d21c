"""A causal trace against the plain procedure: every cell a full pass of clean and noisy rows.

    python benchmarks/trace.py [--json] [CASE …]

GPT-2's shape with random weights, ten corrupted runs, two facts of CounterFact, one of which begins
with its subject (before a subject there is nothing to restore). The plain side is timed on some
cells, spread over tokens and blocks, and scaled to all of them. `hidden` restores hidden states;
`mlp` and `attn` the window that this depth gets by default, `… w10` the paper's window of ten
blocks, which here is nearly all of the model.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from errata.data.request import EditRequest
from errata.tracing.causal import trace_question
from errata.tracing.corruption import kept_deviation, noise_of
from errata.tracing.question import Question, ask_model
from errata.tracing.settings import Kind, TraceSettings
from errata.tracing.trace import Trace
from flops import flops_of
from measure import Cases, Timing, main, medians
from prompts import requests
from subjects import GPT2_SMALL, SMOLLM2, Subject

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from plain_trace import cell, noisy

SAMPLED = 6
"""Cells of each fact that the plain side is timed on."""


def timed(
    kind: Kind,
    window: int | None = None,
    subject: Subject = GPT2_SMALL,
    count: int = 2,
    rounds: int = 3,
) -> Timing:
    """Time traces of one kind, both ways, in turns."""
    (model, coder), facts = subject.load(), _facts(count)
    settings = TraceSettings(kinds=(kind,), window=window)
    blocks, width_of_states = model.config.num_hidden_layers, model.config.hidden_size
    width = settings.window_for(blocks)
    level = 3 * kept_deviation(model, coder, [fact.subject for fact in facts])
    questions = [ask_model(model, coder, fact.text, fact.span) for fact in facts]
    cells = [_some_cells(question, blocks) for question in questions]

    def ours() -> list[Trace]:
        return [trace_question(model, coder, q, settings, level) for q in questions]

    def plain() -> list[list[np.ndarray]]:
        found = []
        for question, chosen in zip(questions, cells, strict=True):
            first, end = question.subject
            noise = torch.tensor(level * noise_of(settings, end - first, width_of_states))
            corrupt = noisy(model, question.subject, noise)
            args = (model, question.ids, question.targets, corrupt, settings.samples, kind)
            found.append([cell(*args, *at, width).numpy() for at in chosen])
        return found

    def counted(samples: int) -> float:
        few = settings.with_values(samples=samples)
        return flops_of(lambda: [trace_question(model, coder, q, few, level) for q in questions])

    one = counted(1)  # the work grows by the same with every corrupted run
    flops = one + (settings.samples - 1) * (counted(2) - one)
    (plain_seconds, told), (seconds, traces) = medians(plain, ours, rounds=rounds)
    total = sum(question.length * blocks for question in questions)
    difference = max(
        float(np.abs(trace.scores[kind][at] / scores - 1).max())
        for trace, chosen, full in zip(traces, cells, told, strict=True)
        for at, scores in zip(chosen, full, strict=True)
    )
    return Timing(
        plain_seconds * total / (len(facts) * SAMPLED),
        seconds,
        difference,
        flops,
        sampled=f"{len(facts) * SAMPLED} of {total} cells of the plain side",
        more={"window": width, "tokens": [question.length for question in questions]},
    )


def _facts(count: int) -> list[EditRequest]:
    """Return facts: the first with its subject inside, the first that begins with it, others."""
    several = requests(40 + count)
    inside = next(fact for fact in several if fact.span[0] > 0)
    begins = next((fact for fact in several if fact.span[0] == 0), several[1])
    others = [fact for fact in several if fact not in (inside, begins)]
    return [inside, begins, *others][:count]


def _some_cells(question: Question, blocks: int) -> list[tuple[int, int]]:
    """Return cells spread over tokens and blocks; in full runs all cost the same."""
    every = [(token, block) for token in range(question.length) for block in range(blocks)]
    return random.Random(0).sample(every, SAMPLED)


CASES = {
    "hidden": lambda: timed("hidden"),
    "mlp": lambda: timed("mlp"),
    "mlp w10": lambda: timed("mlp", 10),
    "attn": lambda: timed("attn"),
    "attn w10": lambda: timed("attn", 10),
}


def smollm2(count: int) -> Cases:
    """Return the traces of `count` facts on SmolLM2, run once."""
    kinds: tuple[Kind, ...] = ("hidden", "mlp", "attn")
    return {
        f"smollm2 {kind} n={count}": partial(timed, kind, None, SMOLLM2, count, 1) for kind in kinds
    }


if __name__ == "__main__":
    main(CASES, __doc__, smollm2, (1,))
