"""Value search: many requests at once, only what δ can reach, against one full forward a step.

Plain is the search of `tests/plain.py`, which is the published one: one request at a time, every
text in full at every step. On random weights it is timed on a sample of the requests, all their
steps, and scaled; on SmolLM2, whose searches end when a target is reached, on all requests.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.settings import Search
from errata.methods.closed_form.target_search import Targets, search_targets
from errata.models.families import family_of
from errata.models.hooks import Site, frozen
from flops import flops_of
from measure import Cases, Timing, cpu_seconds, main, plain
from prompts import rewrites
from subjects import GPT2_SMALL, LLAMA_128K, SMOLLM2, Subject

SEARCH = Search(steps=20, clamp=0.75)
"""As published for MEMIT on GPT-2 XL and GPT-J."""
SAMPLE = 3
"""Requests that the plain search is timed on."""


def case(subject: Subject, together: int, sample: int = SAMPLE) -> Timing:
    """Time `together` requests at once, in turns with the plain search of one of them."""
    (model, reads), block = subject.load(), subject.blocks[-1]
    wanted = rewrites(max(together, sample), reads)
    site = Site(family_of(model).block(model, block), "output")

    def ours(chosen: Sequence[Rewrite], settings: Search = SEARCH) -> Targets:
        return search_targets(model, chosen, block, site, settings, at_once=together)

    theirs, mine, apart, steps = [], [], [], []
    with frozen(model):
        for i in range(sample):
            seconds, found = cpu_seconds(
                partial(plain.search, model, wanted[i], block, "block", SEARCH)
            )
            theirs.append(together * seconds)
            chosen, at = (wanted, i) if together > 1 else ([wanted[i]], 0)
            if i < SAMPLE:
                seconds, targets = cpu_seconds(partial(ours, chosen))
                mine.append(seconds)
            apart.append(_apart(targets.values[at], found.initial + found.delta))
            steps.append((len(targets.losses[at]), len(found.losses)))
        few, more = (
            flops_of(partial(ours, wanted[:together], SEARCH.with_values(steps=n))) for n in (2, 3)
        )
    counted = few + (SEARCH.steps - 2) * (more - few)
    return Timing(
        plain_seconds=statistics.mean(theirs),
        seconds=statistics.mean(mine),
        difference=max(apart),
        flops=counted if all(ours == SEARCH.steps for ours, _ in steps) else 0.0,
        sampled=f"plain: {sample} requests, all their steps" if together > sample else None,
        more={
            "requests": together,
            "steps": [theirs for _, theirs in steps],
            "same_steps": all(ours == theirs for ours, theirs in steps),
        },
    )


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


CASES = {
    "gpt2-small n=16": partial(case, GPT2_SMALL, 16),
    "gpt2-small n=1": partial(case, GPT2_SMALL, 1),
    "llama-128k n=16": partial(case, LLAMA_128K, 16),
    "llama-128k n=1": partial(case, LLAMA_128K, 1),
}


def smollm2(count: int) -> Cases:
    """Return the case of SmolLM2 with `count` requests at once."""
    return {f"smollm2 n={count}": partial(case, SMOLLM2, count, count if count > 1 else SAMPLE)}


if __name__ == "__main__":
    main(CASES, __doc__, smollm2, (1, 20))
