"""How long work will take, measured before it starts on a small part of it.

A group of requests is searched for a few steps, a few cases are asked, a little text is run,
one product is made in float64, with this model on this machine; the counts of `cost` scale that
up. A request whose loss falls below the threshold stops sooner, so the search takes that at most.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from errata.data.case import Case
from errata.data.corpus import Corpus, read_corpus
from errata.experiments.costs.flops import (
    OBJECT_BYTES,
    Cost,
    asking_flops,
    patch_bytes,
    reading_bytes,
    reading_flops,
    search_flops,
    solving_bytes,
    solving_flops,
    written_tokens,
)
from errata.experiments.edit_run import EditPlan
from errata.experiments.eval_run import CASES_AT_ONCE, Evaluation, evaluate_model
from errata.methods import ClosedForm
from errata.methods.closed_form.encoding import Rewrite
from errata.methods.closed_form.memory import group_bytes
from errata.methods.closed_form.moments import moments_wanted
from errata.methods.presets import resolve_settings
from errata.metrics.base import EvalSettings
from errata.metrics.prompts import prompts_of
from errata.models.families import family_of
from errata.models.precision import solving_device, widened_bytes
from errata.models.shape import ModelShape
from errata.models.tokens import TOKENS_AT_ONCE, batches_by_length, encode
from errata.patches.edited_model import EditedModel
from errata.statistics.cost import pass_cost_of, seconds_of
from errata.statistics.store import Store, text_of

SAMPLE_REQUESTS = 16
"""Requests that are searched for a few steps."""
SAMPLE_CASES = 8
"""Cases that are asked."""
SAMPLE_TOKENS = 1024
"""Tokens of a corpus that are run."""
STEPS = (2, 5)
"""Steps of the two searches whose difference is the cost of a step."""


def plan_edits(
    edited: EditedModel,
    method: type[ClosedForm],
    settings: Mapping[str, Any],
    cases: Sequence[Case],
    plan: EditPlan,
    *,
    store: Store,
    corpus: str | None = None,
    tokens: int | None = None,
) -> tuple[ClosedForm, tuple[str, ...], list[Cost]]:
    """Settle a method's settings; return it, warnings, and what moments and edits will cost.

    Nothing is edited, measured or kept. Raises `ErrataError` as `edits.prepare` does.
    """
    count = family_of(edited.model).block_count(edited.model)
    settled, _, warnings = resolve_settings(method, edited.name, count, dict(settings))
    wanted, costs = moments_wanted(edited, settled, store, corpus, tokens), []
    if wanted.corpus is not None:
        text = read_corpus(wanted.corpus)
        missing = store.missing(edited, text, wanted.blocks, tokens=wanted.tokens)
        costs += [second_moment_cost(edited, text, missing, wanted.tokens)] if missing else []
    return settled, warnings, costs + edit_costs(edited, settled, cases, plan)


def edit_costs(
    edited: EditedModel, method: ClosedForm, cases: Sequence[Case], plan: EditPlan
) -> list[Cost]:
    """Return the costs of a run of edits, its scores before and after included.

    The model is as it was found afterwards.
    """
    model, shape, blocks = edited.model, ModelShape.of(edited.model), method.edited_blocks
    few = _spread(cases, min(SAMPLE_REQUESTS, method.requests_at_once or SAMPLE_REQUESTS))
    rewrites, _ = method.rewrites(model, edited.tokenizer, [case.request for case in few])
    scale = len(cases) / len(few)
    together = min(len(cases), method.grouped(model, rewrites).requests_at_once or 1)
    held = group_bytes(model, blocks[-1], rewrites, together)
    held += widened_bytes(model, method.search.precision)
    searched = _search_seconds(edited, method, rewrites)
    searching = search_flops(shape, rewrites, blocks[-1], method.search.steps)
    size = min(plan.batch_size or len(cases), len(cases))
    sizes = [min(size, len(cases) - start) for start in range(0, len(cases), size)]
    reading = reading_flops(model, rewrites, blocks) * scale
    standing = reading_bytes(model, rewrites, size / len(few)) if len(blocks) > 1 else 0
    solving = solving_flops(model, method, sizes)
    scores = evaluation_cost(edited, cases, EvalSettings(), halves=2)
    disk = sum(patch_bytes(model, method, n) for n in sizes)
    costs = [
        Cost("search", searching * scale, searched * scale, held, 0),
        Cost("keys", reading, reading * scores.seconds / scores.flops, scores.memory + standing, 0),
        Cost("solve", solving, solving / _solving_rate(model.device),
             solving_bytes(model, method, size) + standing, disk),
        scores._replace(what="scores"),
    ]  # fmt: skip
    objects = OBJECT_BYTES * len(cases)
    return [cost._replace(memory=cost.memory + objects) for cost in costs]


def second_moment_cost(
    edited: EditedModel,
    corpus: Corpus,
    blocks: Sequence[int],
    tokens: int | None,
    length: int = 512,
) -> Cost:
    """Return the cost of measuring second moments of `blocks` on `tokens` tokens of a corpus."""
    model = edited.model
    rows, held_out = text_of(edited, corpus, tokens, length)
    cost = pass_cost_of(model, rows, blocks, halves=held_out is not None)
    seconds = seconds_of(model, rows, blocks, device=solving_device(model.device))
    return Cost("second moment", cost.flops, seconds, cost.memory, cost.disk)


def evaluation_cost(
    edited: EditedModel, cases: Sequence[Case], asking: EvalSettings, halves: int
) -> Cost:
    """Return the cost of asking a model about cases, once or (`halves` 2) before and after."""
    few, shape = _spread(cases, SAMPLE_CASES), ModelShape.of(edited.model)
    sampled, flops = (asking_flops(shape, edited.tokenizer, some) for some in (few, cases))
    with edited.without_patches():
        plain = EditedModel(edited.model, edited.tokenizer, edited.name)
        evaluate_model(plain, few)
        found: list[Evaluation] = []
        taken = _seconds(lambda: found.append(evaluate_model(plain, few)))
        seconds = taken * flops / sampled
        if asking.generate:
            writing = _seconds(lambda: evaluate_model(plain, few, asking), rounds=1) - taken
            steps = [_writing_steps(plain, some, asking) for some in (few, cases)]
            seconds += max(writing, 0.0) * steps[1] / max(steps[0], 1)
            written = written_tokens(cases, asking.max_new_tokens, asking.text_tokens)
            flops += flops + shape.forward(written, written)
    record = sum(len(json.dumps(found[0].after.record(i))) for i in range(len(few)))
    return Cost(
        "evaluation",
        halves * flops,
        halves * seconds,
        TOKENS_AT_ONCE * 4 * (10 * shape.width + shape.vocabulary // 2),
        halves * record * len(cases) // len(few),
    )


def _writing_steps(plain: EditedModel, cases: Sequence[Case], asking: EvalSettings) -> int:
    """Return how many times the model is run for a token of each row of a batch, at most."""
    found = 0
    for start in range(0, len(cases), CASES_AT_ONCE):
        some = cases[start : start + CASES_AT_ONCE]
        asked = {prompt.text for case in some for prompt in prompts_of(case)}
        lengths = [len(encode(plain.tokenizer, text).ids) + asking.max_new_tokens for text in asked]
        found += len(batches_by_length(lengths, TOKENS_AT_ONCE)) * asking.max_new_tokens
        openings = [text for case in some for text in case.generation_prompts]
        counts = Counter(len(encode(plain.tokenizer, text).ids) for text in openings)
        at_once = max(1, TOKENS_AT_ONCE // asking.text_tokens)
        found += sum(
            -(-count // at_once) * max(asking.text_tokens - length, 0)
            for length, count in counts.items()
        )
    return found


def _search_seconds(edited: EditedModel, method: ClosedForm, rewrites: Sequence[Rewrite]) -> float:
    """Measure short searches; return the seconds of a whole one."""
    search = {**method.search.model_dump(), "stop_at": 0.0}

    def run(steps: int) -> None:
        short = method.with_values(search={**search, "steps": steps})
        short.find_targets(edited.model, rewrites)

    taken = [_seconds(partial(run, steps)) for steps in STEPS]
    step = max(taken[1] - taken[0], 0.0) / (STEPS[1] - STEPS[0])
    return taken[0] + (method.search.steps - STEPS[0]) * step


def _solving_rate(device: torch.device, size: int = 512) -> float:
    """Measure a product in float64: half its FLOPs per second, which is what solvers reach."""
    square = torch.ones(size, size, dtype=torch.float64, device=solving_device(device))
    square @ square
    return size**3 / max(_seconds(lambda: square @ square), 1e-9)


def held_now() -> int:
    """Return the most bytes of main memory that this process has held: Python, libraries, model."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    """Return so many cases from all over."""
    step = max(1, len(cases) // count)
    return list(cases[::step][:count])


def _seconds(work: Callable[[], Any], rounds: int = 2) -> float:
    """Return the least time that `work` took in a few rounds: others disturb a machine."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)
