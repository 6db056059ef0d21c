"""Evaluation: prompts batched by length over cases, against one padded batch a case.

Plain is what the published editors do for every case: each prompt with each target, padded to one
width, in full, logits everywhere. Prompts are CounterFact's where ERRATA_DATA names them: one
rewrite, two paraphrases and ten neighbours a case, two targets each.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.data.case import Case
from errata.metrics.likelihood import answer_row
from errata.metrics.prompts import prompts_of
from errata.metrics.teacher_forced import score_cases
from errata.models.hooks import frozen
from errata.models.tokens import pad_right
from errata.patches.edited_model import EditedModel
from flops import flops_of
from measure import Cases, Timing, cpu_seconds, main
from prompts import data_folder, requests
from subjects import GPT2_SMALL, LLAMA_128K, SMOLLM2, Subject

CASES_ASKED = 32
SAMPLE = 3
"""Cases that the plain way is timed on, in each of three rounds."""


def cases(count: int) -> list[Case]:
    """Return CounterFact's cases, or made-up ones with as many prompts of like length."""
    folder = data_folder()
    if folder is None:
        wanted = requests(2 * count)
        return [
            Case(
                request=request,
                target_true="another one",
                paraphrases=tuple(f"{other.text} so. {request.text}" for other in wanted[:2]),
                neighbours=tuple(other.text for other in wanted[-10:]),
            )
            for request in wanted[:count]
        ]
    from errata.data.datasets import read_cases

    return read_cases(str(folder / "counterfact_full.json"), count)


@torch.no_grad()
def plain_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Case]
) -> list[list[float]]:
    """Return the mean NLL of every prompt's targets, case by case."""
    found = []
    for case in asked:
        rows = [
            answer_row(tokenizer, prompt.text, case.request.separator + target)
            for prompt in prompts_of(case)
            for target in (prompt.new, prompt.true)
            if target is not None
        ]
        ids = pad_right([row.ids for row in rows], model.device)
        said = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        found.append(
            [
                -statistics.fmean(
                    float(said[line, len(row.ids) - len(row.targets) + i, target])
                    for i, target in enumerate(row.targets)
                )
                for line, row in enumerate(rows)
            ]
        )
    return found


def case(subject: Subject, count: int = CASES_ASKED) -> Timing:
    """Time the scores of all cases, in turns with the plain ones of a few."""
    (model, reads), asked = subject.load(), cases(count)
    sample = asked[:SAMPLE]
    prompts = sum(len(prompts_of(each)) for each in asked)
    share = prompts / sum(len(prompts_of(each)) for each in sample)
    theirs, mine, apart = [], [], 0.0
    with frozen(model):
        for _ in range(3):
            taken, wants = cpu_seconds(partial(plain_scores, model, reads, sample))
            theirs.append(share * taken)
            taken, found = cpu_seconds(
                partial(score_cases, EditedModel(model, reads, "benchmark"), asked)
            )
            mine.append(taken)
            for scores, wanted in zip(found, wants, strict=False):
                ours = [s.nll for score in scores for s in (score.new, score.true) if s is not None]
                apart = max(apart, *(abs(one - two) for one, two in zip(ours, wanted, strict=True)))
        flops = flops_of(partial(score_cases, EditedModel(model, reads, "benchmark"), asked))
    few = f"plain: {SAMPLE} cases, scaled by the number of prompts"
    return Timing(
        plain_seconds=statistics.median(theirs),
        seconds=statistics.median(mine),
        difference=apart,
        flops=flops,
        sampled=few if count > SAMPLE else None,
        more={"cases": len(asked), "prompts": prompts},
    )


CASES = {
    f"gpt2-small n={CASES_ASKED}": partial(case, GPT2_SMALL),
    f"llama-128k n={CASES_ASKED}": partial(case, LLAMA_128K),
}


def smollm2(count: int) -> Cases:
    """Return the case of SmolLM2 on `count` cases."""
    return {f"smollm2 n={count}": partial(case, SMOLLM2, count)}


if __name__ == "__main__":
    main(CASES, __doc__, smollm2, (CASES_ASKED,))
