"""The cost of tunings and of a survival matrix, extrapolated from a few steps and cases.

A tuning is started on the model with its own Trainer and optimizer, stopped after a few steps,
and undone. The cost of guards is not included: they need patches that do not exist yet.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from errata.core.cost import Cost, total
from errata.data.instructions import Instruction
from errata.experiments.costs.editing import evaluation_cost, plan_edits
from errata.experiments.edit_plan import EditPlan
from errata.experiments.survival.measure import Questions
from errata.experiments.survival.settings import Matrix, Tuning
from errata.methods import method_named
from errata.metrics.base import EvalSettings
from errata.metrics.tasks import BEAMS, answer_rows
from errata.models.families import family_of, oriented, weight_of
from errata.models.shape import LOGITS, MLPS, STREAMS, ModelShape, weight_bytes
from errata.models.tokens import encode
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store
from errata.tuning.encode import code_rows
from errata.tuning.modules import moving, placed
from errata.tuning.settings import TuneSettings
from errata.tuning.train import tune

STEPS = 4
"""Optimizer steps that are timed; the first is not counted."""
SAMPLE_ROWS = 256
"""Rows from which the average length is estimated."""
SAMPLE_ANSWERS = 4
"""Rows of a task that are answered as a sample."""


class _Enough(Exception):
    """Raised from a tuning once enough steps were timed."""


class _Lengths(NamedTuple):
    """Lengths of rows in tokens."""

    mean: float
    padded: float
    """Mean length of the longest row of a forward pass, to which the others are padded."""


def tuning_cost(edited: EditedModel, rows: Sequence[Instruction], settings: TuneSettings) -> Cost:
    """Return the cost of a tuning; the model is restored afterwards.

    Raises `ErrataError` as `tune` does.
    """
    model, shape = edited.model, ModelShape.of(edited.model)
    names = moving(model, settings, edited.weight_patches)
    held_out = settings.validation
    steps = settings.steps_of(max(1, len(rows) - held_out))
    lengths = _lengths(edited, rows, settings)
    micro = settings.micro_batch_size or settings.batch_size
    numbers = sum(_trained(model, name, settings) for name in names)
    once = shape.forward(lengths.padded, lengths.padded)
    passes = 2 + settings.gradient_checkpointing
    weights = 2 * lengths.padded * numbers
    flops = steps * settings.batch_size * (passes * once + weights)
    checks = held_out * (1 + steps // settings.save_every) if held_out else 0
    step = _step_seconds(edited, rows, settings)
    per_row = step / settings.batch_size
    tokens, blocks = micro * lengths.padded, shape.blocks
    alive = 1 if settings.gradient_checkpointing else blocks
    states = tokens * (alive * (STREAMS * shape.width + MLPS * shape.mlp) + blocks * shape.width)
    full = settings.method == "full"
    size = model.dtype.itemsize if full else 4
    memory = states * model.dtype.itemsize + LOGITS * tokens * shape.vocabulary * 4
    memory += numbers * size * (3 if full else 4)  # gradient, two averages; an adapter itself
    result = weight_bytes(model) if full else numbers * size
    saved = result + 2 * numbers * size  # with the optimizer's averages; two exist at a time
    return Cost(
        "tuning",
        flops + checks * once,
        steps * step + checks * per_row / 3,
        int(memory),
        result + (2 * saved if steps > 1 else 0),
    )


def _lengths(edited: EditedModel, rows: Sequence[Instruction], settings: TuneSettings) -> _Lengths:
    few = rows[:: max(1, len(rows) // SAMPLE_ROWS)][:SAMPLE_ROWS]
    code = (settings.template, settings.cutoff_len, settings.train_on_inputs)
    coded = code_rows(edited.tokenizer, few, *code).rows
    found = [len(row["input_ids"]) for row in coded] or [settings.cutoff_len]
    micro = settings.micro_batch_size or settings.batch_size
    draw = random.Random(0)
    longest = fmean(max(draw.choices(found, k=micro)) for _ in range(SAMPLE_ROWS))
    return _Lengths(fmean(found), longest)


def _trained(model: PreTrainedModel, name: str, settings: TuneSettings) -> int:
    """Return the number of trained values for one parameter."""
    module, weight = weight_of(model, name)
    if settings.method == "full":
        return weight.numel()
    d_out, d_in = oriented(module, weight).shape
    return settings.rank * (d_out + d_in) + (d_out if settings.method == "dora" else 0)


def _step_seconds(
    edited: EditedModel, rows: Sequence[Instruction], settings: TuneSettings
) -> float:
    """Run some steps of a tuning, undo them, and return the seconds per step."""
    if settings.steps_of(len(rows)) < STEPS:
        settings = settings.with_values(max_steps=STEPS)
    settings = settings.with_values(validation=0, save_every=STEPS + 1)
    count = settings.batch_size * STEPS
    few = rows[:: max(1, len(rows) // count)][:count]
    model, times = edited.model, [time.perf_counter()]

    def clock(done: int, total: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if done == STEPS:
            raise _Enough

    moved = moving(model, settings, edited.weight_patches) if settings.method == "full" else ()
    parameters = [model.get_parameter(name) for name in moved]
    before = [parameter.detach().clone() for parameter in parameters]
    trial = EditedModel(model, edited.tokenizer, edited.name)
    try:
        with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
            tune(trial, list(few) * (1 + count // len(few)), settings, Path(folder), progress=clock)
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data.copy_(value)
            parameter.grad = None
    return median(later - sooner for sooner, later in pairwise(times[1:]))


def matrix_costs(
    edited: EditedModel,
    matrix: Matrix,
    questions: Questions,
    rows: Sequence[Instruction],
    store: Store,
) -> list[Cost]:
    """Return the costs of a survival matrix: second moments, edits, tunings, evaluations.

    The cost of edits is scaled from the largest number; each kind of tuning is timed once.
    """
    count, edits = family_of(edited.model).block_count(edited.model), sum(matrix.edits)
    cases, moments, making, written = list(questions.cases), [], [], {}
    for name in matrix.methods:
        forecast = plan_edits(
            edited,
            method_named(name),
            matrix.settings.get(name, {}),
            cases,
            EditPlan(),
            store=store,
            corpus=matrix.corpus,
        )
        written[name] = forecast.method.edited_blocks
        moments += forecast.moments
        share = edits / len(cases)
        making += [_times(cost, share) for cost in forecast.edits]
    tuning: list[Cost] = []
    controls: set[str] = set()
    for text in matrix.tunings:
        for seed in matrix.seeds:
            given = matrix.settings_of(Tuning.parse(text), seed)
            settings = {name: placed(given, blocks, count) for name, blocks in written.items()}
            fresh = {each.model_dump_json() for each in settings.values()} - controls
            controls |= fresh
            if seed == matrix.seeds[0]:
                one = tuning_cost(edited, rows, settings[matrix.methods[0]])
            times = len(matrix.methods) * len(matrix.edits) + len(fresh)
            tuning.append(_times(one, times)._replace(disk=one.disk))
    pieces = len(matrix.methods) * len(matrix.edits)
    models = 1 + pieces + pieces * len(matrix.tunings) * len(matrix.seeds) + len(controls)
    costs = [max(moments, key=lambda cost: cost.seconds)] if moments else []
    return [
        *costs,
        total(making)._replace(what="edits"),
        total(tuning)._replace(what="tunings", disk=max(each.disk for each in tuning)),
        _times(asking_cost(edited, questions), models),
    ]


def asking_cost(edited: EditedModel, questions: Questions) -> Cost:
    """Return the cost of evaluating one model on the data of a matrix."""
    cases, shape = [*questions.cases, *questions.controls], ModelShape.of(edited.model)
    cost = evaluation_cost(edited, cases, EvalSettings(), halves=1)._replace(what="questions")
    flops, seconds = cost.flops, cost.seconds
    for task in questions.tasks:
        few = task._replace(rows=task.rows[:SAMPLE_ANSWERS])
        start = time.perf_counter()
        answer_rows(edited, few, questions.template, max_new_tokens=questions.max_new_tokens)
        seconds += (time.perf_counter() - start) * len(task.rows) / len(few.rows)
        written = len(task.rows) * questions.max_new_tokens * BEAMS
        flops += shape.forward(written, written)
    if questions.passages:
        rate = cost.flops / max(cost.seconds, 1e-9)
        words = sum(len(encode(edited.tokenizer, each.text).ids) for each in questions.passages)
        flops += shape.forward(words, words)
        seconds += shape.forward(words, words) / rate
    return cost._replace(flops=flops, seconds=seconds)


def _times(cost: Cost, factor: float) -> Cost:
    flops, seconds, disk = cost.flops * factor, cost.seconds * factor, int(cost.disk * factor)
    return cost._replace(flops=flops, seconds=seconds, disk=disk)
