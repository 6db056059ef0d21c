"""A run: edit in batches, save each patch before anything else, then score what it did.

    results/<METHOD>/run_<NNN>/  params.json cases.jsonl summary.json report.md patch*.safetensors

Each batch starts from the unedited model, or, if sequential, from the batches before it.
Finished pieces wait in `parts/` until the run is whole; a run that was stopped is found again
by its params and goes on from there. How requests are grouped is decided by the plan alone and
a group is the unit of resume, so a resumed run ends like an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress
from errata.core.settings import Settings
from errata.data.case import Case
from errata.data.request import EditRequest
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import run_folder
from errata.methods.closed_form.driver import ClosedForm
from errata.methods.closed_form.prefixes import sample_prefixes
from errata.metrics.likelihood import likelihoods
from errata.metrics.scores import Score, before_after_json
from errata.metrics.teacher_forced import PromptScore, record_of, score_cases, score_of, summarise
from errata.patches.edited_model import EditedModel, Moments
from errata.patches.patch import Patch
from errata.reports.tables import before_after_rows, markdown_table

CASES_PER_PART = 64
"""Cases that are scored together where they need not follow a batch."""
GROUPING_SAMPLE = 64
"""Cases by whose length is told how many fit into memory at once."""


class EditPlan(Settings):
    """How a run is cut into batches."""

    batch_size: int | None = None
    """Requests per batch; all in one when not given."""
    sequential: bool = False
    """Put each batch on top of the ones before, instead of on the unedited model."""


@dataclass
class Run:
    """What a run made: patches, and scores before and after."""

    folder: Path
    resumed: bool = False
    patches: list[Path] = field(default_factory=list)
    before: list[list[PromptScore]] = field(default_factory=list)
    after: list[list[PromptScore]] = field(default_factory=list)
    lost: dict[str, float] = field(default_factory=dict)
    """Per weight, the share of the last batch's change that the model's dtype swallowed."""

    @property
    def summary(self) -> dict[str, dict[str, Score]]:
        """Scores before and after, by what was scored."""
        return {"before": summarise(self.before), "after": summarise(self.after)}


def run_edits(
    edited: EditedModel,
    cases: Sequence[Case],
    method: ClosedForm,
    moments: Moments,
    plan: EditPlan,
    results: Path,
    *,
    command: str | None = None,
    progress: Progress = no_progress,
) -> Run:
    """Edit all cases in batches and score them; the model ends with the last batch's patches on it.

    The run's folder is made under `results`, or found there if the same run was stopped.
    """
    method = _with_prefixes(method, edited)
    blocks = method.edited_blocks if method.needs_moment else ()
    found = moments(blocks) if callable(moments) else moments
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "method": method.name,
        "settings": method.model_dump(mode="json"),
        "plan": plan.model_dump(),
        "parents": [patch.digest for patch in edited.patches],
        "moments": {str(block): found[block].digest for block in blocks if block in found},
        "cases": [
            case.model_dump(mode="json", exclude_defaults=True, exclude={"references", "essence"})
            for case in cases
        ],
    }
    with run_folder(results, method.label, params, command) as (folder, resumed):
        run = Run(folder, resumed)
        method = _grouped(method, edited, cases, folder / "parts" / "grouping.json")
        work = _Work(edited, cases, method, found, plan, run, command, progress)
        run.before = work.scored("before", cases)
        run.after = work.stacked() if plan.sequential else work.apart()
        _write_results(run, cases, command)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return run


def _with_prefixes(method: ClosedForm, edited: EditedModel) -> ClosedForm:
    """Sample the prefixes once for the whole run."""
    contexts = method.contexts
    if contexts.prefixes is not None:
        return method
    prefixes = sample_prefixes(
        edited.model, edited.tokenizer, contexts.prefix_lengths, contexts.prefix_seed
    )
    return method.with_values(contexts={**contexts.model_dump(), "prefixes": prefixes})


def _grouped(
    method: ClosedForm, edited: EditedModel, cases: Sequence[Case], kept: Path
) -> ClosedForm:
    """Settle how many requests are searched at once, and keep it: it decides what is a group."""
    if kept.exists():
        return method.with_values(requests_at_once=json.loads(kept.read_text("utf-8")))
    some = [case.request for case in cases[:GROUPING_SAMPLE]]
    rewrites, _ = method.rewrites(edited.model, edited.tokenizer, some)
    method = method.grouped(edited.model, rewrites)
    write_text(kept, json.dumps(method.requests_at_once))
    return method


@dataclass
class _Work:
    """One run at work."""

    edited: EditedModel
    cases: Sequence[Case]
    method: ClosedForm
    moments: Moments
    plan: EditPlan
    run: Run
    command: str | None
    progress: Progress

    @property
    def batches(self) -> list[Sequence[Case]]:
        """The cases, cut by the plan."""
        size = self.plan.batch_size or len(self.cases)
        return [self.cases[start : start + size] for start in range(0, len(self.cases), size)]

    def patch_path(self, index: int) -> Path:
        """Where the patch of a batch is kept."""
        alone = len(self.batches) == 1
        return self.run.folder / (
            "patch.safetensors" if alone else f"patch_{index:04d}.safetensors"
        )

    def stacked(self) -> list[list[PromptScore]]:
        """Edit batch upon batch, then score all cases."""
        for index, batch in enumerate(self.batches):
            self._apply(index, batch, None)
            self.progress(index + 1, len(self.batches))
        return self.scored("after", self.cases)

    def apart(self) -> list[list[PromptScore]]:
        """Edit each batch on the unedited model and score it.

        All start from the same model, so the targets of small batches are searched together.
        """
        batches, after = self.batches, []
        together = max(1, (self.method.requests_at_once or 1) // len(batches[0]))
        for first in range(0, len(batches), together):
            group = batches[first : first + together]
            done = all(
                self._part(f"after_{first + i:04d}_0000").exists() for i in range(len(group))
            )
            targets = None if done else self._targets([case for batch in group for case in batch])
            start = 0
            for index, batch in enumerate(group, start=first):
                picked = targets and targets.pick(range(start, start + len(batch)))
                self._apply(index, batch, picked)
                after += self.scored(f"after_{index:04d}", batch)
                start += len(batch)
                if index + 1 < len(batches):
                    self.edited.undo()
                self.progress(index + 1, len(batches))
        return after

    def _targets(self, cases: Sequence[Case]) -> Any:
        requests = [case.request for case in cases]
        rewrites, _ = self.method.rewrites(self.edited.model, self.edited.tokenizer, requests)
        return self.method.find_targets(self.edited.model, rewrites)

    def _apply(self, index: int, batch: Sequence[Case], targets: Any) -> None:
        """Put the patch of a batch on the model, computing and saving it unless that was done."""
        path = self.patch_path(index)
        if path.exists():
            patch = Patch.load(path)
        else:
            patch = self.edited.compute(
                [case.request for case in batch],
                self.method,
                moments=self.moments,
                targets=targets,
                command=self.command,
            )
            patch.save(path)
        self.run.patches.append(path)
        self.run.lost = self.edited.apply(patch)

    def scored(self, name: str, cases: Sequence[Case]) -> list[list[PromptScore]]:
        """Score cases as the model stands, in parts that are kept."""
        scores = []
        for number, start in enumerate(range(0, len(cases), CASES_PER_PART)):
            path = self._part(f"{name}_{number:04d}")
            if path.exists():
                with reading_own(path):
                    kept = parse_json(path.read_text("utf-8"))
                    scores += [[score_of(row) for row in rows] for rows in kept]
                continue
            chunk = cases[start : start + CASES_PER_PART]
            found = score_cases(self.edited, chunk)
            write_text(path, json.dumps([[record_of(score) for score in row] for row in found]))
            scores += found
        return scores

    def _part(self, name: str) -> Path:
        return self.run.folder / "parts" / f"{name}.json"


def _write_results(run: Run, cases: Sequence[Case], command: str | None) -> None:
    summary = run.summary
    rows = before_after_rows(summary["before"], summary["after"])
    first, last = run.patches[0].name, run.patches[-1].name
    write_results(
        run.folder,
        f"{run.folder.parent.name}, {run.folder.name}",
        [
            markdown_table(("figure", "before", "after"), rows),
            f"Requests: {len(cases)}. Patches: "
            + (first if first == last else f"{first} to {last}."),
        ],
        as_json(summary),
        records=map(case_record, cases, run.before, run.after),
        command=command,
    )


def as_json(summary: dict[str, dict[str, Score]]) -> dict[str, Any]:
    """Return the scores after editing by name, and those before under `before`."""
    return before_after_json(summary["before"], summary["after"])


def case_record(
    case: Case, before: Sequence[PromptScore], after: Sequence[PromptScore]
) -> dict[str, Any]:
    """Return one line of `cases.jsonl`."""
    return {
        "case_id": case.id,
        "request": case.request.model_dump(exclude_defaults=True),
        "target_true": case.target_true,
        "before": [record_of(score) for score in before],
        "after": [record_of(score) for score in after],
    }


def already_said(edited: EditedModel, requests: Sequence[EditRequest]) -> tuple[str, ...]:
    """Return a note about the requests whose target the model says already, if there are any."""
    found = likelihoods(edited, [(request.text, request.answer) for request in requests])
    held = [number for number, each in enumerate(found, start=1) if each.likeliest]
    if not held:
        return ()
    first = requests[held[0] - 1]
    told = f"the model already says {first.target!r} after {first.text!r}"
    if len(requests) > 1:
        some = ", ".join(map(str, held[:10])) + (" …" if held[10:] else "")
        told = f"{len(held)} of {len(requests)} requests ask for what is so: {some}; {told}"
    return (f"{told}, so there is little to change",)
