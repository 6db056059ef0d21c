"""`python -m errata.cli.tour MODEL`: edit a model, and show what changed.

First one fact edited by every method; then two patches stacked and undone; then several facts in
one batch, scored. Patches and reports are saved under `results/`. `make demo` shows the embedded
model and its invented world, `make real` a real model (smollm2) and common facts that it knows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from errata.cli import console
from errata.cli.options import command_line
from errata.core.errors import ErrataError
from errata.core.places import moments_folder
from errata.data.case import Case
from errata.data.common_facts import cases_of, common_facts
from errata.data.corpus import Corpus
from errata.data.datasets import read_cases
from errata.experiments.edit_plan import EditPlan, plan_for
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.known_facts import known_facts
from errata.methods import METHODS, Method
from errata.methods.edit import Prepared, compute_edit, prepare
from errata.methods.moments import moments_wanted, quick_tokens
from errata.methods.presets import settings_for
from errata.metrics.prompts import PROMPT_KINDS
from errata.models.generation import continuations
from errata.patches.edited_model import EditedModel, load
from errata.statistics.store import Store

MANY = 20
"""Number of facts of the demo that are edited in one batch in the last part."""
ANSWER_TOKENS = 12
REAL_ANSWER_TOKENS = 6
"""Tokens of an answer shown; a real model does not stop after the answer."""
FEWEST = 2
"""Number of facts that a real model must know: two patches are stacked."""


def main() -> None:
    """Run the tour of the model named on the command line, by default the demo."""
    name = sys.argv[1] if sys.argv[1:] else "demo"
    store = Store(moments_folder())
    if name == "demo":
        torch.set_num_threads(1)
        edited, cases = load(name), read_cases(name, MANY)
        console.verb("errata demo: a small Llama that knows an invented world")
    else:
        edited = load(name, dtype="float32", say=console.progress_line)
        console.verb(f"errata on a real model: {name}")
        cases = known_cases(edited)
        measure_missing(edited, store)
    ready = [_ready(edited, method, store) for method in METHODS.values()]
    console.fact(ready[-1].facts[-1])
    patches = _one_fact(edited, ready, cases[0])
    _stack(edited, ready[0], cases[:2])
    _many_facts(edited, ready, cases)
    console.next_step(
        f'errata chat {name} --patch {patches[0]} -p "{cases[0].request.text}"',
        f'errata edit {name} "{cases[1].request.marked}" "{cases[1].request.target}"',
        "errata ls patches",
    )


def known_cases(edited: EditedModel) -> list[Case]:
    """Return one case of each relation of which the model knows facts."""
    known = known_facts(edited)
    console.fact(f"it knows {len(known)} of {len(common_facts())} common facts")
    by_relation = {fact.relation: case for fact, case in reversed(cases_of(known))}
    cases = list(reversed(by_relation.values()))
    if len(cases) < FEWEST:
        raise ErrataError(
            f"{edited.name} knows too few common facts to edit", "choose a larger model"
        )
    return cases


def measure_missing(edited: EditedModel, store: Store) -> None:
    """Make a quick estimate of the second moments that neither are stored nor ship with errata.

    The text is Python's own documentation, which every Python has.
    """
    missing = set[int]()
    for method in METHODS.values():
        settled, _, _ = settings_for(method, edited, {})
        try:
            moments_wanted(edited, settled, store)
        except ErrataError:
            missing.update(settled.moment_blocks)
    if not missing:
        return
    blocks = sorted(missing)
    corpus, tokens = python_documentation(), quick_tokens(edited, blocks)
    forecast = store.forecast(edited, corpus, blocks, tokens=tokens)
    if forecast is not None:
        listed = ",".join(map(str, blocks))
        console.fact(
            f"second moments of blocks {listed} are estimated once, on {forecast.tokens} tokens "
            f"of {corpus.name}: about {forecast.seconds:.0f} s"
        )
    with console.bar("second moment", "tokens") as progress:
        store.get(edited, corpus, blocks, tokens=tokens, progress=progress)


def python_documentation() -> Corpus:
    """Return the paragraphs of the topics of Python's `help()`."""
    from pydoc_data.topics import topics

    paragraphs = [
        " ".join(text.split()) for topic in topics.values() for text in topic.split("\n\n")
    ]
    return Corpus("Python's documentation", [text for text in paragraphs if text])


def _ready(edited: EditedModel, method: type[Method], store: Store) -> Prepared:
    """Return a method with its context prefixes, sampled once for all its edits."""
    ready = prepare(edited, method, {}, store=store)
    return ready._replace(method=ready.method.sampled(edited))


def _edit(edited: EditedModel, ready: Prepared, cases: Sequence[Case], plan: EditPlan) -> Run:
    method, moments = ready.method, ready.moments
    command = "make demo" if edited.name == "demo" else command_line()
    return run_edits(edited, cases, method, moments, plan, Path("results"), command=command)


def _begin(edited: EditedModel, work: str) -> None:
    """Report what takes a while on a real model."""
    if edited.name != "demo":
        console.progress_line(work)


def _answers(edited: EditedModel, prompts: Sequence[str]) -> list[str]:
    """Return the first line of the answer to each prompt."""
    tokens = ANSWER_TOKENS if edited.name == "demo" else REAL_ANSWER_TOKENS
    rendered = [edited.rendered(prompt) for prompt in prompts]
    found = continuations(edited.model, edited.tokenizer, rendered, tokens)
    return [text.strip().partition("\n")[0] for text in found]


def _one_fact(edited: EditedModel, ready: Sequence[Prepared], case: Case) -> list[Path]:
    """Show the answers before and after an edit by every method."""
    prompts = [case.request.text, *case.paraphrases, *case.neighbours[:3]]
    kinds = ["fact", *("paraphrase" for _ in case.paraphrases), *["neighbour"] * 3]
    columns, patches = [_answers(edited, prompts)], []
    for each in ready:
        _begin(edited, f"{each.method.label}: 1 fact")
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
    demo = edited.name == "demo"
    names = PROMPT_KINDS if demo else tuple(f"{kind}_accuracy" for kind in PROMPT_KINDS)
    rows = []
    for each in ready:
        plan = plan_for(each.method, None, False, dataset=True)
        _begin(edited, f"{each.method.label}: {len(cases)} facts, {plan.words()}")
        run = _edit(edited, each, cases, plan)
        while edited.patches:
            edited.undo()
        scores = run.summary["after"]
        name = f"{each.method.label}, {plan.words()}"
        rows.append([name, *(str(scores[kind]) for kind in names)])
    shares = "success rates of prompts" if demo else "share of prompts with the right answer"
    console.fact(f"{len(cases)} facts: {shares}, with 95 % intervals")
    console.table(("", *PROMPT_KINDS), rows)


if __name__ == "__main__":
    try:
        main()
    except ErrataError as problem:
        console.error(problem)
        sys.exit(1)
