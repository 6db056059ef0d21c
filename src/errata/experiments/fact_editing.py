"""The complete workflow of `errata edit`: second moments, edits, answers, warnings.

Answers before and after are generated in batches. `edit_facts` returns everything that the command
line shows as `FactEdits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.progress import Progress, Say
from errata.data.case import Case
from errata.data.corpus import Corpus
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, as_json, run_edits
from errata.methods import Method
from errata.methods.edit import prepare
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.teacher_forced import PromptScore
from errata.models.generation import continuations
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store

PROMPTS_SHOWN = 12
"""Requests of a dataset whose answers are generated before and after."""
PROBES_SHOWN = 4
"""Paraphrases and neighbours of a single case whose answers are generated."""
ANSWER_TOKENS = 12
"""Maximum length of a generated answer."""
LOST = 0.01
"""Share of the change lost in the model's dtype above which a warning is given."""

Bar = Callable[[str, str], AbstractContextManager[Progress]]
"""Opens a progress bar with a title and a unit."""


@dataclass(frozen=True)
class Feedback:
    """Where progress and messages of the work go."""

    bar: Bar
    say: Say
    """Takes lines about the progress of work."""
    warn: Say
    """Takes warnings, as soon as they are known."""


@dataclass(frozen=True)
class FactEdits:
    """Edits, with everything that the command line shows of them."""

    edited: EditedModel
    method: Method
    facts: tuple[str, ...]
    """The sources of settings and moments."""
    run: Run
    answers: list[dict[str, Any]]
    """Per prompt: kind, prompt, answers before and after, probability of the new target before
    and after. Empty where batches were edited apart, so that no one model has all edits."""

    def as_json(self) -> dict[str, Any]:
        """Return what `errata edit --json` prints."""
        return {
            "model": self.edited.name,
            "method": self.method.name,
            "requests": len(self.run.after.scores),
            "run": str(self.run.folder),
            "patches": [str(path) for path in self.run.patches],
            "plan": self.run.plan_words,
            **self.run.findings,
            "summary": as_json(self.run.summary),
            "answers": self.answers,
        }


def edit_facts(
    edited: EditedModel,
    cases: Sequence[Case],
    method: type[Method],
    settings: Mapping[str, Any],
    plan: EditPlan,
    results: Path,
    feedback: Feedback,
    *,
    preset: Path | None = None,
    store: Store | None = None,
    corpus: Corpus | str | None = None,
    tokens: int | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    command: str | None = None,
) -> FactEdits:
    """Edit the facts of `cases` and return what changed; the run is stored under `results`.

    `notes` are what `check_batches` returned, where it was called before. Raises `ErrataError`
    like `methods.edit.prepare` and `run_edits`.
    """
    with feedback.bar("second moment", "tokens") as progress:
        ready = prepare(
            edited,
            method,
            settings,
            preset=preset,
            store=store,
            corpus=corpus,
            tokens=tokens,
            progress=progress,
            say=feedback.say,
        )
    for warning in ready.warnings:
        feedback.warn(warning)
    prompts, before = list[tuple[str, str]](), list[str]()

    def scored(run: Run) -> None:
        prompts.extend(shown_prompts(cases) if run.plan.is_stacked(len(cases)) else ())
        for warning in known_answers(cases, run):
            feedback.warn(warning)
        before.extend(_answers(edited, prompts))

    with feedback.bar("edits", "") as progress:
        run = run_edits(
            edited,
            cases,
            ready.method,
            ready.moments,
            plan,
            results,
            notes=notes,
            command=command,
            progress=progress,
            scored=scored,
        )
    rows = answer_rows(prompts, before, _answers(edited, prompts), run)
    for warning in shortfalls(edited, run):
        feedback.warn(warning)
    return FactEdits(edited, ready.method, ready.facts, run, rows)


def shown_prompts(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Return kind and text of the prompts whose answers are shown.

    All kinds for a single case; the requests alone for the first of several.
    """
    if len(cases) > 1:
        return [("fact", case.request.text) for case in cases[:PROMPTS_SHOWN]]
    case = cases[0]
    return [
        ("fact", case.request.text),
        *(("paraphrase", text) for text in case.paraphrases[:PROBES_SHOWN]),
        *(("neighbour", text) for text in case.neighbours[:PROBES_SHOWN]),
    ]


def _answers(edited: EditedModel, prompts: Sequence[tuple[str, str]]) -> list[str]:
    texts = [edited.rendered(text) for _, text in prompts]
    return continuations(edited.model, edited.tokenizer, texts, ANSWER_TOKENS) if texts else []


def answer_rows(
    prompts: Sequence[tuple[str, str]], before: Sequence[str], after: Sequence[str], run: Run
) -> list[dict[str, Any]]:
    """Return one row per prompt: answers, and the new target's probability, before and after."""
    numbers: dict[str, tuple[float, float]] = {}
    for then, now in zip(run.before.scores, run.after.scores, strict=True):
        for old, new in zip(then, now, strict=True):
            numbers[old.prompt] = (math.exp(-old.new.nll), math.exp(-new.new.nll))
    return [
        {
            "kind": kind,
            "prompt": text,
            "before": old.strip(),
            "after": new.strip(),
            "p_new_before": numbers[text][0],
            "p_new_after": numbers[text][1],
        }
        for (kind, text), old, new in zip(prompts, before, after, strict=True)
    ]


def known_answers(cases: Sequence[Case], run: Run) -> Iterator[str]:
    """Yield a warning where the unedited model already gives the new answers."""
    held = [
        number for number, each in enumerate(_rewrites(run.before.scores), 1) if each.new.likeliest
    ]
    if not held:
        return
    first = cases[held[0] - 1].request
    known = f"the model already says {first.target!r} after {first.text!r}"
    if len(cases) > 1:
        some = ", ".join(map(str, held[:10])) + (" …" if held[10:] else "")
        known = f"{len(held)} of {len(cases)} targets are already the answer: {some}; {known}"
    yield f"{known}, so there is little to change"


def shortfalls(edited: EditedModel, run: Run) -> Iterator[str]:
    """Yield a warning about changes that rounding lost."""
    lost = max(run.lost.values(), default=0.0)
    if lost > LOST:
        yield (
            f"{100 * lost:.0f} % of the change is lost in {edited.model.dtype}; "
            "load the model in float32 (--dtype float32)"
        )


def _rewrites(scores: Sequence[Sequence[PromptScore]]) -> Iterator[PromptScore]:
    """Yield the score of each case's own prompt."""
    for case in scores:
        yield next(score for score in case if score.kind == PROMPT_KINDS[0])
