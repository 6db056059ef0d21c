"""`python -m errata.cli.tour` (`make demo`): edit the embedded model, and show what changed.

First one fact edited by every method; then two patches stacked and undone; then twenty facts in
one batch, scored. Patches and reports are saved under `results/`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from errata.cli import console
from errata.core.errors import ErrataError
from errata.core.places import moments_folder
from errata.data.case import Case
from errata.data.datasets import read_cases
from errata.experiments.edit_plan import EditPlan, plan_for
from errata.experiments.edit_run import Run, run_edits
from errata.methods import METHODS
from errata.methods.edit import Prepared, compute_edit, prepare
from errata.metrics.prompts import PROMPT_KINDS
from errata.patches.edited_model import EditedModel, load
from errata.statistics.store import Store

MANY = 20
"""Number of facts edited in one batch in the last part."""


def main() -> None:
    """Run the tour."""
    torch.set_num_threads(1)
    edited, cases = load("demo"), read_cases("demo", MANY)
    store = Store(moments_folder())
    console.verb("errata demo: a small Llama that knows an invented world")
    ready = [prepare(edited, method, {}, store=store) for method in METHODS.values()]
    console.fact(ready[-1].facts[-1])
    patches = _one_fact(edited, ready, cases[0])
    _stack(edited, ready[0], cases[:2])
    _many_facts(edited, ready, cases)
    console.next_step(
        f'errata chat demo --patch {patches[0]} -p "{cases[0].request.text}"',
        f'errata edit demo "{cases[1].request.marked}" "{cases[1].request.target}"',
        "errata ls patches",
    )


def _edit(edited: EditedModel, ready: Prepared, cases: Sequence[Case], plan: EditPlan) -> Run:
    method, moments = ready.method, ready.moments
    return run_edits(edited, cases, method, moments, plan, Path("results"), command="make demo")


def _answers(edited: EditedModel, prompts: Sequence[str]) -> list[str]:
    return [edited.generate(prompt, 12).strip() for prompt in prompts]


def _one_fact(edited: EditedModel, ready: Sequence[Prepared], case: Case) -> list[Path]:
    """Show the answers before and after an edit by every method."""
    prompts = [case.request.text, *case.paraphrases, *case.neighbours[:3]]
    kinds = ["fact", *("paraphrase" for _ in case.paraphrases), *["neighbour"] * 3]
    columns, patches = [_answers(edited, prompts)], []
    for each in ready:
        patches += _edit(edited, each, [case], EditPlan()).patches
        columns.append(_answers(edited, prompts))
        edited.undo()
    console.fact(f"one fact: {case.request.marked} → {case.request.target}")
    rows = [list(row) for row in zip(kinds, prompts, *columns, strict=False)]
    console.table(("", "prompt", "before", *(each.method.label for each in ready)), rows)
    console.fact("saved " + ", ".join(map(str, patches)))
    return patches


def _stack(edited: EditedModel, ready: Prepared, cases: Sequence[Case]) -> None:
    """Apply two patches, undo the first, then the second; compare the weights."""
    saved = [parameter.detach().clone() for parameter in edited.model.parameters()]
    prompts = [case.request.text for case in cases]
    first, second = (
        compute_edit(edited, [case.request], ready.method, moments=ready.moments) for case in cases
    )
    rows = [["unedited", *_answers(edited, prompts)]]
    edited.apply(first)
    rows.append(["first patch", *_answers(edited, prompts)])
    edited.apply(second)
    rows.append(["both patches", *_answers(edited, prompts)])
    edited.undo(first)
    rows.append(["first patch undone", *_answers(edited, prompts)])
    edited.undo(second)
    console.fact("two patches stacked, then undone")
    console.table(("", *prompts), rows)
    if not all(map(torch.equal, saved, edited.model.parameters())):
        raise ErrataError("undoing the patches did not restore the model", "please report this")
    console.fact("both undone: every weight is restored bit for bit")


def _many_facts(edited: EditedModel, ready: Sequence[Prepared], cases: Sequence[Case]) -> None:
    rows = []
    for each in ready:
        plan = plan_for(each.method, None, False, dataset=True)
        run = _edit(edited, each, cases, plan)
        while edited.patches:
            edited.undo()
        scores = run.summary["after"]
        name = f"{each.method.label}, {plan.words()}"
        rows.append([name, *(str(scores[kind]) for kind in PROMPT_KINDS)])
    console.fact(f"{len(cases)} facts: success rates of prompts, with 95 % intervals")
    console.table(("", *PROMPT_KINDS), rows)


if __name__ == "__main__":
    try:
        main()
    except ErrataError as problem:
        console.error(problem)
        sys.exit(1)
