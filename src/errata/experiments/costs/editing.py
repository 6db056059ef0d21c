"""The cost of edits and evaluations, estimated by timing a small part of the work.

A few cases are scored and a little text is run with this model on this machine; the counts in
`costs.flops` scale that up. Each method estimates its own part (`Method.costs`).
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.cost import Cost, least_seconds, spread
from errata.data.case import Case
from errata.data.corpus import Corpus, read_corpus
from errata.experiments.costs.flops import OBJECT_BYTES, asking_flops, written_tokens
from errata.experiments.edit_plan import EditPlan
from errata.experiments.eval_run import Evaluation, evaluate_model
from errata.experiments.scoring import CASES_AT_ONCE
from errata.methods import Method
from errata.methods.moments import moments_wanted
from errata.methods.presets import settings_for
from errata.metrics.base import EvalSettings
from errata.metrics.prompts import prompts_of
from errata.metrics.registry import prepared_metrics
from errata.models.precision import solving_device
from errata.models.shape import ModelShape
from errata.models.tokens import TOKENS_AT_ONCE, batches_by_length, encode
from errata.patches.edited_model import EditedModel
from errata.statistics.cost import pass_cost_of, seconds_of
from errata.statistics.store import Store
from errata.statistics.text import text_of

SAMPLE_CASES = 2
"""Cases that are evaluated as a sample, once; a dry run must cost little of the run."""
SAMPLE_TOKENS = 1024
"""Tokens of a corpus that are run as a sample."""


class EditForecast(NamedTuple):
    """A method with its settings for a model, and the cost of a run of edits by it."""

    method: Method
    warnings: tuple[str, ...]
    moments: list[Cost]
    """The cost of the second moments that have to be computed first."""
    edits: list[Cost]
    """The cost of making the edits."""
    scores: Cost
    """The cost of scoring the model before and after."""

    @property
    def costs(self) -> list[Cost]:
        """All costs, in the order of the work."""
        return [*self.moments, *self.edits, self.scores]


def plan_edits(
    edited: EditedModel,
    method: type[Method],
    settings: Mapping[str, Any],
    cases: Sequence[Case],
    plan: EditPlan,
    *,
    preset: Path | None = None,
    store: Store,
    corpus: Corpus | str | None = None,
    tokens: int | None = None,
) -> EditForecast:
    """Resolve a method's settings and estimate the cost of a run of edits.

    Nothing is edited, computed in full, or stored. Raises `ErrataError` like
    `methods.edit.prepare`.
    """
    settled, _, warnings = settings_for(method, edited, settings, preset)
    wanted, moments = moments_wanted(edited, settled, store, corpus, tokens), []
    if wanted.corpus is not None:
        text = read_corpus(wanted.corpus)
        missing = store.missing(edited, text, wanted.blocks, tokens=wanted.tokens)
        moments += [second_moment_cost(edited, text, missing, wanted.tokens)] if missing else []
    *edits, scores = edit_costs(edited, settled, cases, plan)
    return EditForecast(settled, warnings, moments, edits, scores)


def edit_costs(
    edited: EditedModel, method: Method, cases: Sequence[Case], plan: EditPlan
) -> list[Cost]:
    """Return the costs of a run of edits; the last is that of the scores.

    The model is left as found.
    """
    scores = evaluation_cost(edited, cases, EvalSettings(), halves=3)._replace(what="scores")
    edits = method.costs(edited, [case.request for case in cases], plan.sizes(len(cases)), scores)
    objects = OBJECT_BYTES * len(cases)
    return [cost._replace(memory=cost.memory + objects) for cost in (*edits, scores)]


def second_moment_cost(
    edited: EditedModel,
    corpus: Corpus,
    blocks: Sequence[int],
    tokens: int | None,
    length: int = 512,
) -> Cost:
    """Return the cost of computing second moments of `blocks` on `tokens` tokens of a corpus."""
    model = edited.model
    rows, held_out = text_of(edited, corpus, tokens, length)
    cost = pass_cost_of(model, rows, blocks, halves=held_out is not None)
    seconds = seconds_of(model, rows, blocks, device=solving_device(model.device))
    return Cost("second moment", cost.flops, seconds, cost.memory, cost.disk)


def evaluation_cost(
    edited: EditedModel, cases: Sequence[Case], asking: EvalSettings, halves: int
) -> Cost:
    """Return the cost of evaluating a model on cases, once or on several `halves`.

    These are the edited model, the unedited one, and that with the facts in the prompt.
    """
    few, shape = spread(cases, SAMPLE_CASES), ModelShape.of(edited.model)
    metrics = prepared_metrics(cases, asking)
    flops = asking_flops(shape, edited, metrics, cases)
    with edited.without_patches():
        plain = EditedModel(edited.model, edited.tokenizer, edited.name)
        sampled = asking_flops(shape, plain, metrics, few)
        found: list[Evaluation] = []
        taken = least_seconds(lambda: found.append(evaluate_model(plain, few)), rounds=1)
        seconds = taken * flops / sampled
        if asking.generate:
            writing = least_seconds(lambda: evaluate_model(plain, few, asking), rounds=1) - taken
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
    """Return the maximum number of decoding steps, each of one token per row of a batch."""
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


def held_now() -> int:
    """Return the peak resident memory of this process in bytes: Python, libraries, model."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
