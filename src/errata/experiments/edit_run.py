"""A run of edits: each batch is edited and its patch saved at once, then the cases are scored.

    results/<METHOD>/run_<NNN>/  params.json cases.jsonl summary.json report.md patch*.safetensors

Each batch starts from the unedited model or, in a sequential run, from the batches before it.
Finished pieces are stored in `parts/` until the run is complete. An interrupted run is found by
its params and resumed. How requests are grouped is recorded, and a group is the unit of resume,
so that a resumed run ends like an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.progress import Progress, no_progress
from errata.data.case import Case
from errata.experiments.advice import advise
from errata.experiments.case_records import HALVES
from errata.experiments.edit_plan import EditPlan, batches_of, check_batches
from errata.experiments.eval_run import Evaluation
from errata.experiments.parts import Parts, json_format
from errata.experiments.run_folder import is_unfinished, run_folder
from errata.experiments.scoring import CASES_AT_ONCE, score_in_parts, score_parts
from errata.methods import Method
from errata.methods.base import Job
from errata.metrics.base import EvalSettings
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.registry import Outcomes, prepared_metrics
from errata.metrics.scores import Score, before_after_json
from errata.patches.base import load_edit
from errata.patches.edited_model import EditedModel
from errata.statistics.second_moment import SecondMoment


@dataclass
class Run:
    """The result of a run: patches, and scores before and after."""

    folder: Path
    resumed: bool = False
    plan: EditPlan = field(default_factory=EditPlan)
    """How the requests were cut into batches."""
    plan_words: str = ""
    """The plan in words, the first line of every table of the run."""
    patches: list[Path] = field(default_factory=list)
    before: Outcomes = field(default_factory=Outcomes)
    after: Outcomes = field(default_factory=Outcomes)
    in_prompt: Outcomes | None = None
    """Of the unedited model with each fact in the prompt; None without that control."""
    lost: dict[str, float] = field(default_factory=dict)
    """Per weight, the share of the last batch's change that is lost in the model's dtype."""
    stopped_short: list[int] | None = field(default_factory=list)
    """Indices of the requests whose target search stopped short; None where this is not known."""
    advice: str | None = None
    """Where the edits did too little or too much, and what to change; None where all is well."""

    @property
    def findings(self) -> dict[str, Any]:
        """What JSON says besides scores: the advice, and the numbers, from 1, of the requests whose
        target search stopped short (None where this is not known)."""
        short = self.stopped_short
        numbers = None if short is None else [index + 1 for index in short]
        return {"advice": self.advice, "stopped_short": numbers}

    @property
    def summary(self) -> dict[str, dict[str, Score]]:
        """Scores by name, of each of `HALVES` that was scored."""
        halves = zip(HALVES, (self.before, self.after, self.in_prompt), strict=True)
        return {name: half.summary for name, half in halves if half is not None}


def run_edits(
    edited: EditedModel,
    cases: Sequence[Case],
    method: Method,
    moments: Mapping[int, SecondMoment],
    plan: EditPlan,
    results: Path,
    *,
    notes: Sequence[Sequence[str]] | None = None,
    asking: EvalSettings | None = None,
    command: str | None = None,
    progress: Progress = no_progress,
    scored: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Edit all cases in batches and score them; the last batch's patches stay on the model.

    The run's folder is made under `results`, or found there if the same run was interrupted.
    `notes` are what `check_batches` returned for this plan, where it was called before; `asking`
    says what is scored (default: the defaults); `scored` is called with the scores before, while
    the model is still unedited. Prompts are asked in the first form in which requests are edited.
    Raises `ErrataError` for conflicting requests in a batch, before the folder is made.
    """
    notes = check_batches(cases, plan) if notes is None else notes
    method = method.sampled(edited)
    used = {block: moments[block] for block in method.moment_blocks if block in moments}
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "method": method.name,
        "settings": method.model_dump(mode="json"),
        "plan": plan.model_dump(),
        "parents": [patch.digest for patch in edited.patches],
        "moments": {str(block): moment.digest for block, moment in used.items()},
        "cases": [
            case.model_dump(mode="json", exclude_defaults=True, exclude={"references", "essence"})
            for case in cases
        ],
    }
    asking = asking or EvalSettings()
    if chosen := asking.model_dump(exclude_defaults=True):
        params["asking"] = chosen
    together = EditPlan()
    begun = params | {"plan": together.model_dump()}
    if plan.by_default and is_unfinished(results, method.label, begun):
        plan, params, notes = together, begun, check_batches(cases, together)
    asked = edited.asked(method.forms(edited)[0])
    with asked, run_folder(results, method.label, params, command) as (folder, resumed):
        run = Run(folder, resumed, plan, plan.words(len(cases), len(edited.patches)))
        job = _begun(method, edited, cases, Parts(folder / "parts", json_format()))
        work = _Work(edited, cases, method, job, moments, plan, run, notes, command, progress)
        work.control(asking)
        scored(run)
        run.after = work.stacked() if plan.sequential else work.apart()
        run.advice = _advice(run, method)
        _write_results(run, cases, command)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return run


def _begun(
    method: Method, edited: EditedModel, cases: Sequence[Case], parts: Parts[int | None]
) -> Job:
    """Begin all requests; how many are worked on together is recorded, or read on resume."""
    job = method.begin(edited, [case.request for case in cases], parts.stored("grouping"))
    parts.one("grouping", lambda: job.group_size)
    return job


@dataclass
class _Work:
    """A run in progress."""

    edited: EditedModel
    cases: Sequence[Case]
    method: Method
    job: Job
    moments: Mapping[int, SecondMoment]
    plan: EditPlan
    run: Run
    notes: Sequence[Sequence[str]]
    command: str | None
    progress: Progress

    def control(self, asking: EvalSettings) -> None:
        """Prepare the metrics, and score the model before any edit, on which it is judged."""
        self.metrics = prepared_metrics(self.cases, asking)
        self.parts = score_parts(self.metrics, self.run.folder / "parts")
        self.run.before = self.scored("before", self.cases)
        if asking.controls:
            self.run.in_prompt = self.scored("in_prompt", self.cases, in_prompt=True)

    @property
    def batches(self) -> list[Sequence[Case]]:
        """The cases, cut into batches."""
        return batches_of(self.cases, self.plan)

    def patch_path(self, index: int) -> Path:
        """Return where the patch of a batch is stored."""
        alone = len(self.batches) == 1
        return self.run.folder / (
            "patch.safetensors" if alone else f"patch_{index:04d}.safetensors"
        )

    def stacked(self) -> Outcomes:
        """Edit the batches on top of each other, then score all cases."""
        start = 0
        for index, batch in enumerate(self.batches):
            self._apply(index, self.job.take(range(start, start + len(batch))))
            start += len(batch)
            self.progress(index + 1, len(self.batches))
        return self.scored("after", self.cases)

    def apart(self) -> Outcomes:
        """Edit each batch on the unedited model and score it.

        All batches start from the same model, so groups of small ones share computations.
        """
        batches, after, start = self.batches, Outcomes(), 0
        together = max(1, self.job.group_size // len(batches[0]))
        for first in range(0, len(batches), together):
            group = batches[first : first + together]
            names = [f"after_{first + i:04d}_0000" for i in range(len(group))]
            done = None not in map(self.parts.stored, names)
            work, begin = self.job.take(range(start, start + sum(map(len, group)))), 0
            work = work if done else work.shared()
            for index, batch in enumerate(group, start=first):
                self._apply(index, work.take(range(begin, begin + len(batch))))
                after.extend(self.scored(f"after_{index:04d}", batch, start + begin))
                begin += len(batch)
                if index + 1 < len(batches):
                    self.edited.undo()
                self.progress(index + 1, len(batches))
            start += begin
        return after

    def _apply(self, index: int, job: Job) -> None:
        """Apply the patch of a batch, which is computed and saved unless it is stored already."""
        path = self.patch_path(index)
        if path.exists():
            patch = load_edit(path)
        else:
            patch = self.method.edit(
                self.edited,
                job.requests,
                moments=self.moments,
                job=job,
                notes=self.notes[index],
                command=self.command,
            )
            patch.save(path)
        self.run.patches.append(path)
        self._note_search(index, patch.provenance.stopped_short)
        self.run.lost = self.edited.apply(patch)

    def _note_search(self, index: int, short: Sequence[int] | None) -> None:
        """Add the requests of a batch whose target search stopped short, where it is known."""
        if short is None or self.run.stopped_short is None:
            self.run.stopped_short = None
        else:
            start = sum(map(len, self.batches[:index]))
            self.run.stopped_short += [start + each for each in short]

    def scored(
        self, name: str, cases: Sequence[Case], first: int = 0, *, in_prompt: bool = False
    ) -> Outcomes:
        """Score cases on the model in its present state, in parts that are stored.

        `first` is the index of `cases[0]` among all cases of the run.
        """
        return score_in_parts(
            self.edited,
            cases,
            self.metrics,
            self.parts,
            lambda start: f"{name}_{start // CASES_AT_ONCE:04d}",
            first=first,
            in_prompt=in_prompt,
        )


def _advice(run: Run, method: Method) -> str | None:
    own = [next(row for row in case if row.kind == PROMPT_KINDS[0]) for case in run.after.scores]
    said = [score.new.likeliest for score in own]
    return advise(said, run.stopped_short, run.before.summary, run.after.summary, method, run.plan)


def _write_results(run: Run, cases: Sequence[Case], command: str | None) -> None:
    first, last = run.patches[0].name, run.patches[-1].name
    patches = first if first == last else f"{first} to {last}"
    advice = [] if run.advice is None else [f"Advice: {run.advice}."]
    Evaluation(cases, run.after, run.before, run.in_prompt, run.plan_words).write(
        run.folder,
        f"{run.folder.parent.name}, {run.folder.name}",
        [*advice, f"Requests: {len(cases)}. Patches: {patches}."],
        command,
        run.findings,
    )


def as_json(summary: dict[str, dict[str, Score]]) -> dict[str, Any]:
    """Return the scores after editing by name, and those of the controls under their names."""
    return before_after_json(summary["before"], summary["after"], summary.get("in_prompt"))
