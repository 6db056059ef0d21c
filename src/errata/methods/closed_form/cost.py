"""Cost of a closed-form edit: target search, reading keys, solving; counted and, in part, timed.

FLOPs (2 for a multiplication and an addition) are counted from the model's matrices and the
tokens that pass through them. The seconds of a search are extrapolated from two short searches
on a sample of the requests; requests whose loss reaches the threshold early take less.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from errata.core.cost import Cost, least_seconds, spread
from errata.data.request import EditRequest
from errata.methods.closed_form.keys import Keys, bare_rows
from errata.methods.closed_form.memory import group_bytes
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.target_loss import tokens_searched
from errata.models.families import family_of, oriented
from errata.models.hooks import frozen
from errata.models.layerwise import STATE_BYTES, LayerwiseReader
from errata.models.precision import solving_device, widened_bytes
from errata.models.shape import ModelShape
from errata.models.tokens import TOKENS_AT_ONCE, encode
from errata.patches.edited_model import EditedModel

if TYPE_CHECKING:
    from errata.methods.closed_form.driver import ClosedForm

SAMPLE_REQUESTS = 16
"""Requests whose tokens are counted."""
TIMED_REQUESTS = 2
"""Requests that are searched for a few steps."""
STEPS = (1, 3)
"""Steps of the two searches whose difference is the cost of a step."""
HEADER_BYTES, REQUEST_BYTES = 2500, 200
"""Approximate bytes of a patch file besides its tensors: in total, and per request."""


def closed_form_costs(
    method: ClosedForm,
    edited: EditedModel,
    requests: Sequence[EditRequest],
    batch_sizes: Sequence[int],
    scoring: Cost,
) -> list[Cost]:
    """Return the costs of search, keys and solve (see `Method.costs`)."""
    model, shape, blocks = edited.model, ModelShape.of(edited.model), method.edited_blocks
    few = spread(requests, min(SAMPLE_REQUESTS, method.requests_at_once or SAMPLE_REQUESTS))
    sampling, alike = _sampling(edited, method)
    rewrites = alike.rewrites(edited, few)
    scale, size = len(requests) / len(few), max(batch_sizes)
    together = min(len(requests), method.grouped(model, rewrites).requests_at_once or 1)
    held = group_bytes(model, blocks[-1], rewrites, together)
    held += widened_bytes(model, method.search.precision)
    timed = spread(rewrites, TIMED_REQUESTS)
    searching, of_timed = (
        search_flops(shape, some, blocks[-1], method.search.steps) for some in (rewrites, timed)
    )
    searched = _search_seconds(edited, method, timed) * searching / of_timed
    reading = reading_flops(model, rewrites, blocks) * scale
    cached = reading_bytes(model, rewrites, size / len(few)) if len(blocks) > 1 else 0
    solving = solving_flops(model, method, batch_sizes)
    disk = sum(patch_bytes(model, method, n) for n in batch_sizes)
    return [
        Cost("search", searching * scale, sampling + searched * scale, held, 0),
        Cost("keys", reading, reading * scoring.seconds / scoring.flops,
             scoring.memory + cached, 0),
        Cost("solve", solving, solving / _solving_rate(model.device),
             solving_bytes(model, method, size) + cached, disk),
    ]  # fmt: skip


def search_flops(shape: ModelShape, rewrites: Sequence[Rewrite], block: int, steps: int) -> float:
    """Return the FLOPs of a target search of `steps` steps at `block`."""
    once, suffix, heads = tokens_searched(rewrites, TOKENS_AT_ONCE)
    above = range(block + 1, shape.blocks)
    spared = 2 * (suffix - heads) * shape.last_mlp_weights if above else 0  # never read
    step = 2 * (shape.forward(suffix, heads, above) - spared)  # forward, and backward to δ
    return shape.forward(once, 0) + (steps - 0.5) * step


def reading_flops(
    model: PreTrainedModel, rewrites: Sequence[Rewrite], blocks: Sequence[int]
) -> float:
    """Return the FLOPs of reading keys and residuals at the edited blocks, from the lowest up."""
    shape = ModelShape.of(model)
    cut, bare = Keys(model, rewrites).tokens(), LayerwiseReader(model, bare_rows(rewrites)).tokens()
    return sum(
        shape.forward(cut, 0, range(start, block + 1))
        + shape.forward(bare, 0, range(start, blocks[-1] + 1))
        for start, block in pairwise((0, *blocks))
    )


def reading_bytes(model: PreTrainedModel, rewrites: Sequence[Rewrite], scale: float) -> int:
    """Return the approximate bytes of hidden states held for `scale` times these requests."""
    states = Keys(model, rewrites).tokens() * ModelShape.of(model).width * model.dtype.itemsize
    return min(STATE_BYTES, int(scale * states))


def solving_flops(model: PreTrainedModel, method: ClosedForm, sizes: Sequence[int]) -> float:
    """Return the FLOPs of solving batches of these sizes; each block's C is factored once."""
    found = 0.0
    for d_out, d_in in written_shapes(model, method):
        found += d_in**3 * (9 if not method.inverts else 1 / 3)  # eigenvectors, or Cholesky
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
    """Return the approximate file size of the patch of `n` requests."""
    return (
        HEADER_BYTES
        + REQUEST_BYTES * n
        + sum(
            4 * (min(n * (d_out + d_in), d_out * d_in) + d_in * min(n, d_in))
            for d_out, d_in in written_shapes(model, method)
        )
    )


def solving_bytes(model: PreTrainedModel, method: ClosedForm, n: int) -> int:
    """Return the peak bytes of solving for `n` requests in float64.

    C of every block; for one block also its factor, a copy, the keys, and Δ twice.
    """
    shapes = written_shapes(model, method)
    most = max(2 * d_in**2 + 4 * d_in * n + 2 * d_out * d_in for d_out, d_in in shapes)
    return 8 * most + sum(12 * d_in**2 for _, d_in in shapes)  # C in float32, and its factor


def _sampling(edited: EditedModel, method: ClosedForm) -> tuple[float, ClosedForm]:
    """Return the seconds of sampling prefixes, and the method with others that are as long."""
    contexts = method.contexts
    if contexts.prefixes is not None:
        return 0.0, method
    alike = ["The" + " the" * length + ". " for length in contexts.prefix_lengths]
    text = encode(edited.tokenizer, max(alike, key=len, default="The")).ids
    ids = torch.tensor([text], device=edited.model.device)
    with frozen(edited.model), torch.no_grad():
        one = least_seconds(lambda: edited.model(input_ids=ids, use_cache=False), rounds=1)
    settled = method.with_values(contexts={**contexts.model_dump(), "prefixes": alike})
    return one * sum(contexts.prefix_lengths), settled


def _search_seconds(edited: EditedModel, method: ClosedForm, rewrites: Sequence[Rewrite]) -> float:
    """Time two short searches; return the extrapolated seconds of a full one."""
    search = {**method.search.model_dump(), "stop_at": 0.0, "max_steps": None}

    def run(steps: int) -> None:
        short = method.with_values(search={**search, "steps": steps})
        short.find_targets(edited.model, rewrites)

    taken = [least_seconds(partial(run, steps), rounds=1) for steps in STEPS]
    step = max(taken[1] - taken[0], 0.0) / (STEPS[1] - STEPS[0])
    return taken[0] + (method.search.steps - STEPS[0]) * step


def _solving_rate(device: torch.device, size: int = 512) -> float:
    """Return half the FLOPs per second of a float64 product, which is what solvers reach."""
    square = torch.ones(size, size, dtype=torch.float64, device=solving_device(device))
    square @ square
    return size**3 / max(least_seconds(lambda: square @ square), 1e-9)
