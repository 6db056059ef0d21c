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
from typing import Any, NamedTuple

from errata.core.progress import Progress, Say
from errata.data.case import Case
from errata.data.corpus import Corpus
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, as_json, run_edits
from errata.methods import Method
from errata.methods.edit import prepare
from errata.metrics.base import EvalSettings
from errata.metrics.likelihood import likelihoods
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.teacher_forced import PromptScore
from errata.models.generation import continuations
from errata.patches.chat_form import ChatForm
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
    controls: bool = True,
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
    prompts, before = list[Shown](), list[Answered]()
    asked, *others = ready.method.forms(edited)
    also = (others or [ChatForm()])[0] if ChatForm().is_usable(edited.tokenizer) else None

    def scored(run: Run) -> None:
        if run.plan.is_stacked(len(cases)):
            prompts.extend(shown_prompts(cases, asked, also))
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
            asking=EvalSettings(controls=controls),
            command=command,
            progress=progress,
            scored=scored,
        )
    rows = answer_rows(prompts, before, _answers(edited, prompts))
    for warning in shortfalls(edited, run):
        feedback.warn(warning)
    facts = ready.facts if also is None else (*ready.facts, _forms_fact(asked, others))
    return FactEdits(edited, ready.method, facts, run, rows)


def _forms_fact(asked: ChatForm | None, others: Sequence[ChatForm | None]) -> str:
    """Return in which forms facts are edited, where the tokenizer has a chat template."""
    if asked is not None:
        return "edited and scored as messages in a chat, and not as plain text (--template both)"
    if others:
        return "edited as plain text and as messages in a chat, scored as plain text"
    return "edited as plain text, and not as messages in a chat (--template both)"


class Shown(NamedTuple):
    """A prompt whose answers are shown, and the form in which it is asked."""

    kind: str
    prompt: str
    target: str
    """The new answer, with its separator."""
    chat: ChatForm | None


class Answered(NamedTuple):
    """What a model answers to a prompt."""

    text: str
    p_new: float
    """Probability of the new answer: the geometric mean over its tokens."""


def shown_prompts(
    cases: Sequence[Case], asked: ChatForm | None, also: ChatForm | None
) -> list[Shown]:
    """Return the prompts whose answers are shown.

    All kinds for a single case, asked in the form that is scored, and the request once more in
    the form `also`; the requests alone for the first of several.
    """
    chosen = cases[:PROMPTS_SHOWN]
    facts = [Shown("fact", case.request.text, case.request.answer, asked) for case in chosen]
    if len(cases) > 1:
        return facts
    (fact,), case = facts, cases[0]
    chat = [fact._replace(kind="in chat", chat=also)] if also is not None and asked is None else []
    probes = [("paraphrase", text) for text in case.paraphrases[:PROBES_SHOWN]]
    probes += [("neighbour", text) for text in case.neighbours[:PROBES_SHOWN]]
    return [fact, *chat, *(fact._replace(kind=kind, prompt=text) for kind, text in probes)]


def _answers(edited: EditedModel, shown: Sequence[Shown]) -> list[Answered]:
    """Answer prompts, those of each form in one batch."""
    found: dict[Shown, Answered] = {}
    for form in {each.chat: None for each in shown}:
        group = [each for each in shown if each.chat == form]
        with edited.asked(form):
            texts = [edited.rendered(each.prompt) for each in group]
            said = continuations(edited.model, edited.tokenizer, texts, ANSWER_TOKENS)
            scores = likelihoods(edited, [(each.prompt, each.target) for each in group])
        for each, text, score in zip(group, said, scores, strict=True):
            found[each] = Answered(text.strip(), math.exp(-score.nll))
    return [found[each] for each in shown]


def answer_rows(
    shown: Sequence[Shown], before: Sequence[Answered], after: Sequence[Answered]
) -> list[dict[str, Any]]:
    """Return one row per prompt: answers, and the new target's probability, before and after."""
    return [
        {
            "kind": each.kind,
            "prompt": each.prompt,
            "before": old.text,
            "after": new.text,
            "p_new_before": old.p_new,
            "p_new_after": new.p_new,
        }
        for each, old, new in zip(shown, before, after, strict=True)
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
