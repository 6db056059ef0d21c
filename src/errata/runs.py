"""A run: edit in batches, save each patch before anything else, then score what it did.

    results/<METHOD>/run_<NNN>/  params.json cases.jsonl summary.json report.md patch*.safetensors

Each batch starts from the unedited model, or, if sequential, from the batches before it. Every
file is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.case import Case
from errata.errors import ErrataError
from errata.evaluate import PromptScore, score_cases, summarise
from errata.files import write_text
from errata.methods.closed_form import ClosedForm
from errata.model import EditedModel, Moments
from errata.patch import Patch
from errata.report import Score, markdown_table, score_rows
from errata.settings import Settings


class Plan(Settings):
    """How a run is cut into batches."""

    batch_size: int | None = None
    """Requests per batch; all in one when not given."""
    sequential: bool = False
    """Put each batch on top of the ones before, instead of on the unedited model."""


@dataclass
class Run:
    """What a run made: patches, and scores before and after."""

    folder: Path
    patches: list[Path] = field(default_factory=list)
    before: list[list[PromptScore]] = field(default_factory=list)
    after: list[list[PromptScore]] = field(default_factory=list)
    lost: dict[str, float] = field(default_factory=dict)
    """Per weight, the share of the last batch's change that the model's dtype swallowed."""

    @property
    def summary(self) -> dict[str, dict[str, Score]]:
        """Scores before and after, by what was scored."""
        return {"before": summarise(self.before), "after": summarise(self.after)}


def new_folder(results: Path, label: str) -> Path:
    """Make and return the next free `results/<label>/run_<NNN>`."""
    parent = results / label
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            folder = parent / f"run_{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise ErrataError(
            f"cannot write results to {parent}: {error.strerror}",
            "name another folder: --results DIR",
        ) from None
    raise ErrataError(f"{parent} holds a thousand runs", "name another folder: --results DIR")


def run_edits(
    edited: EditedModel,
    cases: Sequence[Case],
    method: ClosedForm,
    moments: Moments,
    plan: Plan,
    folder: Path,
    *,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """Edit all cases in batches and score them; the model ends with the last batch's patches on it.

    With batches that are not sequential the target values of all requests are searched
    together, since all start from the same model.
    """
    method = _with_prefixes(method, edited)
    size = plan.batch_size or len(cases)
    batches = [cases[start : start + size] for start in range(0, len(cases), size)]
    run, before_patches = Run(folder), len(edited.patches)
    write_params(folder, edited, method, plan, cases, command)
    run.before = score_cases(edited.model, edited.tokenizer, cases)
    targets = None
    if not plan.sequential:
        rewrites, _ = method.rewrites(
            edited.model, edited.tokenizer, [case.request for case in cases]
        )
        targets = method.find_targets(edited.model, rewrites)
    for index, batch in enumerate(batches):
        if not plan.sequential:
            while len(edited.patches) > before_patches:
                edited.undo()
        start = index * size
        picked = None if targets is None else targets.pick(range(start, start + len(batch)))
        patch = edited.compute(
            [case.request for case in batch],
            method,
            moments=moments,
            targets=picked,
            command=command,
        )
        name = "patch.safetensors" if len(batches) == 1 else f"patch_{index:03d}.safetensors"
        run.patches.append(patch.save(folder / name))
        run.lost = edited.apply(patch)
        if not plan.sequential:
            run.after += score_cases(edited.model, edited.tokenizer, batch)
        progress(index + 1, len(batches))
    if plan.sequential:
        run.after = score_cases(edited.model, edited.tokenizer, cases)
    _write_results(run, cases, command)
    return run


def _with_prefixes(method: ClosedForm, edited: EditedModel) -> ClosedForm:
    """Sample the prefixes once for the whole run."""
    if method.contexts.prefixes is not None:
        return method
    from errata.prefixes import sample_prefixes

    contexts = method.contexts
    prefixes = sample_prefixes(
        edited.model, edited.tokenizer, contexts.prefix_lengths, contexts.seed
    )
    return method.with_values(contexts={**contexts.model_dump(), "prefixes": prefixes})


def write_params(
    folder: Path,
    edited: EditedModel,
    method: ClosedForm,
    plan: Plan,
    cases: Sequence[Case],
    command: str | None,
) -> None:
    """Write `params.json`: everything that decides the run's outcome."""
    params = {
        "model": edited.base.model_dump(),
        "method": method.name,
        "settings": method.model_dump(mode="json"),
        "plan": plan.model_dump(),
        "parents": [patch.digest for patch in edited.patches],
        "cases": [case.id for case in cases],
        "command": command,
    }
    write_text(folder / "params.json", json.dumps(params, indent=1, ensure_ascii=False) + "\n")


def _write_results(run: Run, cases: Sequence[Case], command: str | None) -> None:
    lines = [
        json.dumps(case_record(case, before, after), ensure_ascii=False)
        for case, before, after in zip(cases, run.before, run.after, strict=True)
    ]
    write_text(run.folder / "cases.jsonl", "\n".join(lines) + "\n")
    summary = run.summary
    write_text(run.folder / "summary.json", json.dumps(as_json(summary), indent=1) + "\n")
    rows = score_rows(summary["before"], summary["after"])
    report = [
        f"# {run.folder.parent.name}, {run.folder.name}",
        markdown_table(("share of prompts", "before", "after"), rows),
        f"Requests: {len(cases)}. Patches: {', '.join(path.name for path in run.patches)}.",
        *([f"Made by `{command}`."] if command else []),
    ]
    write_text(run.folder / "report.md", "\n\n".join(report) + "\n")


def as_json(summary: dict[str, dict[str, Score]]) -> dict[str, Any]:
    """Return the scores after editing by name, and those before under `before`."""
    after = {name: score.model_dump() for name, score in summary["after"].items()}
    return {
        **after,
        "before": {name: score.model_dump() for name, score in summary["before"].items()},
    }


def case_record(
    case: Case, before: Sequence[PromptScore], after: Sequence[PromptScore]
) -> dict[str, Any]:
    """Return one line of `cases.jsonl`."""
    return {
        "case_id": case.id,
        "request": case.request.model_dump(),
        "target_true": case.target_true,
        "prompts": [
            {
                "kind": then.kind,
                "prompt": then.prompt,
                "before": _numbers(then),
                "after": _numbers(now),
            }
            for then, now in zip(before, after, strict=True)
        ],
    }


def _numbers(score: PromptScore) -> dict[str, Any]:
    return {
        "nll_new": score.new.nll,
        "nll_true": None if score.true is None else score.true.nll,
        "success": score.success,
        "accurate": score.accurate,
    }


def read_patches(folder: Path) -> list[Patch]:
    """Return the patches of a run, in order."""
    return [Patch.load(path) for path in sorted(folder.glob("patch*.safetensors"))]
