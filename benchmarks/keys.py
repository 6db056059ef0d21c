"""Keys: rows cut at the subject, run once on their way up, against whole texts in full forwards.

Plain is what the published editors do per block: every request's texts, prompt and prefixes, in
one padded forward pass of the whole model, logits included.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.methods.closed_form.keys import Keys
from errata.methods.closed_form.rewrite import Rewrite
from errata.models.families import family_of
from errata.models.hooks import frozen
from errata.models.tokens import pad_right
from flops import flops_of
from measure import Timing, cpu_seconds, main
from prompts import rewrites
from subjects import GPT2_SMALL, LLAMA_128K, Subject

REQUESTS = 100
SAMPLE = 3
"""Requests that the plain way is timed on, in each of three rounds."""


@torch.no_grad()
def plain_keys(model: PreTrainedModel, wanted: Sequence[Rewrite], block: int) -> Tensor:
    """Return the keys of requests (n, d_in), one full forward pass of all texts per request."""
    seen: list[Tensor] = []
    write = family_of(model).mlp_out(model, block)
    handle = write.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    found = []
    for rewrite in wanted:
        # whole prompts without their targets: the last of `ids` that belong to the prompt
        rows = [row.ids[: len(row.ids) - len(row.targets) + 1] for row in rewrite.rows]
        model(input_ids=pad_right(rows, model.device), use_cache=False)
        states = seen.pop()
        at = [states[line, row.position] for line, row in enumerate(rewrite.rows)]
        found.append((at[0] + torch.stack(at[1:]).mean(0)) / 2)
    handle.remove()
    return torch.stack(found)


def case(subject: Subject, count: int) -> Timing:
    """Time the keys of `count` requests at every block, as an edit reads them."""
    (model, reads), blocks = subject.load(), subject.blocks
    wanted = rewrites(count, reads)
    sample = wanted[: min(count, SAMPLE)]

    def ours(chosen: Sequence[Rewrite]) -> list[Tensor]:
        keys = Keys(model, chosen)
        return [keys.at(block, last=block == blocks[-1])[0] for block in blocks]

    def theirs() -> list[Tensor]:
        return [plain_keys(model, sample, block) for block in blocks]

    plain_seconds, seconds, apart = [], [], []
    with frozen(model):
        for _ in range(3):
            taken, wants = cpu_seconds(theirs)
            plain_seconds.append(taken * count / len(sample))
            taken, found = cpu_seconds(partial(ours, wanted))
            seconds.append(taken)
            apart += [
                float(((one[: len(two)] - two).norm(dim=1) / two.norm(dim=1)).max())
                for one, two in zip(found, wants, strict=True)
            ]
        flops = flops_of(partial(ours, wanted))
    return Timing(
        plain_seconds=statistics.median(plain_seconds),
        seconds=statistics.median(seconds),
        difference=max(apart),
        flops=flops,
        sampled=f"plain: {len(sample)} requests" if len(sample) < count else None,
        more={"requests": count, "blocks": list(blocks)},
    )


CASES = {
    f"{subject.name} n={count}": partial(case, subject, count)
    for subject in (GPT2_SMALL, LLAMA_128K)
    for count in (REQUESTS, 1)
}

if __name__ == "__main__":
    main(CASES, __doc__)
