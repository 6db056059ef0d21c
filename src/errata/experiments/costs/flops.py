"""What work costs, counted: FLOPs, bytes held, bytes written.

FLOPs (2 for a multiplication and addition) are counted from the model's matrices and the tokens
that pass through them; attention's own products, which short texts hardly notice, are left out.
`estimate` adds seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.data.case import Case
from errata.methods import ClosedForm
from errata.methods.closed_form.encoding import Rewrite
from errata.methods.closed_form.keys import Keys, bare_rows
from errata.methods.closed_form.target_loss import tokens_searched
from errata.metrics.likelihood import answer_row, tokens_scored
from errata.metrics.prompts import prompts_of
from errata.models.families import family_of, oriented
from errata.models.layerwise import HELD_BYTES, LayerwiseReader
from errata.models.shape import ModelShape
from errata.models.tokens import TOKENS_AT_ONCE

HEADER_BYTES, REQUEST_BYTES = 2500, 200
"""What a patch file holds besides its numbers, about: for itself, and for each request."""
OBJECT_BYTES = 25_000
"""What a request takes as long as it is worked on, about: its texts, their tokens, its scores."""


class Cost(NamedTuple):
    """What one piece of work takes."""

    what: str
    flops: float
    seconds: float
    memory: int
    """Peak bytes besides the model's weights."""
    disk: int
    """Bytes that are written."""


def total(costs: Sequence[Cost]) -> Cost:
    """Add costs up: work one after the other, so memory is that of the hungriest."""
    return Cost(
        "in all",
        sum(cost.flops for cost in costs),
        sum(cost.seconds for cost in costs),
        max((cost.memory for cost in costs), default=0),
        sum(cost.disk for cost in costs),
    )


def search_flops(shape: ModelShape, rewrites: Sequence[Rewrite], block: int, steps: int) -> float:
    """Return the FLOPs of searching target values at `block` for so many steps."""
    once, suffix, heads = tokens_searched(rewrites, TOKENS_AT_ONCE)
    above = range(block + 1, shape.blocks)
    spared = 2 * (suffix - heads) * shape.last_mlp_weights if above else 0  # not read, so not run
    step = 2 * (shape.forward(suffix, heads, above) - spared)  # there and back, to the states alone
    return shape.forward(once, 0) + (steps - 0.5) * step


def reading_flops(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], blocks: Sequence[int]
) -> float:
    """Return the FLOPs of reading keys and residuals at the edited blocks, on the way up."""
    shape = ModelShape.of(model)
    cut, bare = Keys(model, rewrites).tokens(), LayerwiseReader(model, bare_rows(rewrites)).tokens()
    return sum(
        shape.forward(cut, 0, range(start, block + 1))
        + shape.forward(bare, 0, range(start, blocks[-1] + 1))
        for start, block in pairwise((0, *blocks))
    )


def reading_bytes(model: PreTrainedModel, rewrites: Sequence[Rewrite], scale: float) -> int:
    """Return what is kept on the way up of `scale` times these requests, about."""
    states = Keys(model, rewrites).tokens() * ModelShape.of(model).width * model.dtype.itemsize
    return min(HELD_BYTES, int(scale * states))


def solving_flops(model: PreTrainedModel, method: ClosedForm, sizes: Sequence[int]) -> float:
    """Return the FLOPs of solving batches of these sizes, each block's C factored once."""
    found = 0.0
    for d_out, d_in in written_shapes(model, method):
        found += d_in**3 * (9 if method.name == "alphaedit" else 1 / 3)  # eigenvectors, or Cholesky
        found += sum(
            6 * d_in**2 * n + 2 * n**2 * d_in + n**3 / 3 + 4 * d_out * d_in * n for n in sizes
        )
    return found


def written_shapes(model: PreTrainedModel, method: ClosedForm) -> list[tuple[int, int]]:
    """Return (d_out, d_in) of every weight that the method writes."""
    family = family_of(model)
    modules = [family.mlp_out(model, block) for block in method.edited_blocks]
    shapes = [oriented(module, module.get_parameter("weight")).shape for module in modules]
    return [(shape[0], shape[1]) for shape in shapes]


def patch_bytes(model: PreTrainedModel, method: ClosedForm, n: int) -> int:
    """Return the size of the patch of `n` requests, about."""
    return (
        HEADER_BYTES
        + REQUEST_BYTES * n
        + sum(
            4 * (min(n * (d_out + d_in), d_out * d_in) + d_in * min(n, d_in))
            for d_out, d_in in written_shapes(model, method)
        )
    )


def solving_bytes(model: PreTrainedModel, method: ClosedForm, n: int) -> int:
    """Return what solving for `n` requests holds at once, all in float64.

    C of every block, then for one of them its factor, a copy, keys, and Δ twice.
    """
    shapes = written_shapes(model, method)
    most = max(2 * d_in**2 + 4 * d_in * n + 2 * d_out * d_in for d_out, d_in in shapes)
    return 8 * most + sum(12 * d_in**2 for _, d_in in shapes)  # C in float32, and its factor


def asking_flops(
    shape: ModelShape, tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case]
) -> float:
    """Return the FLOPs of scoring every prompt of every case, both targets."""
    rows = [
        answer_row(tokenizer, prompt.text, case.request.separator + target)
        for case in cases
        for prompt in prompts_of(case)
        for target in (prompt.new, prompt.true)
        if target is not None
    ]
    return shape.forward(tokens_scored(rows), sum(len(row.targets) for row in rows))


def written_tokens(cases: Sequence[Case], answer: int, text: int) -> int:
    """Return how many tokens are written at most: answers to all prompts, and texts."""
    prompts = sum(len(prompts_of(case)) for case in cases)
    return prompts * answer + text * sum(len(case.generation_prompts) for case in cases)
