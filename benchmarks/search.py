"""Value search: many requests at once, only what δ can reach, against one full forward a step.

Plain is the search of `tests/plain.py`, which is the published one: one request at a time, every
text in full at every step. It is timed on a sample of the requests, all their steps, and scaled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_search import Targets, search_targets
from errata.models.families import family_of
from errata.models.hooks import Site, frozen
from flops import flops_of
from measure import Timing, cpu_seconds, gpt2_small, llama_128k, main, plain, rewrites

SEARCH = Search(steps=20, clamp=0.75)
"""As published for MEMIT on GPT-2 XL and GPT-J."""
SAMPLE = 3
"""Requests that the plain search is timed on."""


def case(build: Callable[[], PreTrainedModel], block: int, together: int) -> Timing:
    """Time `together` requests at once, in turns with the plain search of one of them."""
    model, wanted = build(), rewrites(max(together, SAMPLE))
    site = Site(family_of(model).block(model, block), "output")

    def ours(chosen: Sequence[Rewrite], settings: Search = SEARCH) -> Targets:
        return search_targets(model, chosen, block, site, settings, at_once=together)

    theirs, mine, apart, steps = [], [], [], []
    with frozen(model):
        for i in range(SAMPLE):
            seconds, found = cpu_seconds(
                partial(plain.search, model, wanted[i], block, "block", SEARCH)
            )
            theirs.append(together * seconds)
            chosen, at = (wanted, i) if together > 1 else ([wanted[i]], 0)
            seconds, targets = cpu_seconds(partial(ours, chosen))
            mine.append(seconds)
            apart.append(_apart(targets.values[at], found.initial + found.delta))
            steps.append(len(targets.losses[at]) == len(found.losses))
        few, more = (
            flops_of(partial(ours, wanted[:together], SEARCH.with_values(steps=n))) for n in (2, 3)
        )
    return Timing(
        plain_seconds=statistics.median(theirs),
        seconds=statistics.median(mine),
        difference=max(apart),
        flops=few + (SEARCH.steps - 2) * (more - few),
        sampled=f"plain: {SAMPLE} requests, all their steps" if together > 1 else None,
        more={"requests": together, "steps": SEARCH.steps, "same_steps": all(steps)},
    )


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


CASES = {
    "gpt2-small n=16": partial(case, gpt2_small, 7, 16),
    "gpt2-small n=1": partial(case, gpt2_small, 7, 1),
    "llama-128k n=16": partial(case, llama_128k, 4, 16),
    "llama-128k n=1": partial(case, llama_128k, 4, 1),
}

if __name__ == "__main__":
    main(CASES, __doc__)
