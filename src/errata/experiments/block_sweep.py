"""A sweep of edits over blocks: each fact is edited alone at each block, and every edit is scored.

    results/sweep/run_<NNN>/  params.json summary.json report.md blocks/<B>.json

It measures directly what a causal trace can only suggest: at which blocks edits work. The two are
known to disagree (arXiv 2301.04213); `sweep_vs_trace` compares them. An interrupted sweep resumes
at the first case that was not scored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.files import reading_own
from errata.core.progress import Progress, no_progress, shifted
from errata.data.case import Case
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.parts import Parts, json_format
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import run_folder
from errata.methods import Method
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.scores import Score
from errata.patches.edited_model import EditedModel
from errata.reports.tables import markdown_table
from errata.statistics.second_moment import SecondMoment

LABEL = "sweep"
PRESERVED = "same_subject_accuracy"
SHOWN = (*PROMPT_KINDS, "score", PRESERVED)
"""The metrics that are shown, where the cases allow them."""
ALONE = EditPlan(batch_size=1)
"""How every sweep edits."""
CRITERIA = ("score", PROMPT_KINDS[0], f"{PROMPT_KINDS[0]}_accuracy")
"""The metrics to compare blocks by, best first. The last one needs no true answers."""


class BlockScores(NamedTuple):
    """The scores of the edits at one block."""

    summary: dict[str, Score]
    magnitudes: dict[str, list[float | None]]
    """Per kind of prompt and case, the mean of P(right answer) - P(wrong answer)."""


@dataclass
class Sweep:
    """The result of a sweep."""

    folder: Path
    method: str
    before: dict[str, Score] = field(default_factory=dict)
    """The scores of the unedited model."""
    blocks: dict[int, BlockScores] = field(default_factory=dict)
    plan: str = ""
    """How the facts are edited, in words."""

    @property
    def criterion(self) -> str:
        """The metric by which blocks are compared: the first that every block has."""
        return next(c for c in CRITERIA if all(c in b.summary for b in self.blocks.values()))

    @property
    def alike(self) -> tuple[int, ...]:
        """The best block, and those whose value lies within the best one's confidence interval.

        Empty if that interval includes the value before any edit. Overlap of intervals is no test:
        with few facts, those of blocks with one successful edit and with none overlap.
        """
        scores = {block: found.summary[self.criterion] for block, found in self.blocks.items()}
        top = max(scores.values(), key=lambda score: score.value)
        known = self.before.get(self.criterion)
        before = 0.0 if known is None else known.value
        if top.low <= before:
            return ()
        return tuple(block for block, score in scores.items() if score.value >= top.low)

    @property
    def _highest(self) -> list[int]:
        """Those of `alike` with the highest value, rounded to whole percent as it is shown."""
        name = self.criterion
        shown = {b: round(100 * self.blocks[b].summary[name].value) for b in self.alike}
        return [block for block, value in shown.items() if value == max(shown.values())]

    @property
    def best(self) -> int | None:
        """The best block; ties are broken by the accuracy on the subjects' other facts.

        None if edits work at no block.
        """
        known = all(PRESERVED in found.summary for found in self.blocks.values())

        def rank(block: int) -> tuple[float, float]:
            summary = self.blocks[block].summary
            return summary[PRESERVED].value if known else 0.0, summary[self.criterion].value

        return max(self._highest, key=rank, default=None)

    @property
    def verdict(self) -> str:
        """A sentence on where edits work."""
        name, best = self.criterion, self.best
        if best is None:
            top = max((b.summary[name] for b in self.blocks.values()), key=lambda s: s.value)
            text = f"edits work at none of these blocks: {name} at most {percent(top)} %"
            known = self.before.get(name)
            return text + (f", {100 * known.value:.0f} % before any edit" if known else "")
        figure = f"{name} {percent(self.blocks[best].summary[name])} %"
        if len(self.alike) == 1:
            return f"edits work best at block {best}: {figure}"
        text = f"edits work equally well at blocks {_listed(self.alike)}: {figure}"
        if len(self._highest) == 1:
            return f"{text}, highest at block {best}"
        if PRESERVED not in self.blocks[best].summary:
            return text
        equals = f"blocks {_listed(self._highest)}, which score highest,"
        return (
            f"{text}; of {'them' if tuple(self._highest) == self.alike else equals} block {best} "
            f"preserves the subjects' other facts best, {self.blocks[best].summary[PRESERVED]}"
        )

    def table(self, traced: Mapping[str, Sequence[Score]] | None = None) -> list[list[str]]:
        """Return rows of block, metrics in percent and, if given, the effects of a trace."""
        rows = []
        for block, found in self.blocks.items():
            row = [str(block), *(percent(found.summary[name]) for name in self.columns)]
            rows.append(row + [percent(scores[block]) for scores in (traced or {}).values()])
        return rows

    @property
    def columns(self) -> list[str]:
        """The shown metrics that every block has."""
        names = (
            SHOWN
            if PROMPT_KINDS[0] in next(iter(self.blocks.values())).summary
            else CRITERIA + SHOWN
        )
        return [name for name in names if all(name in b.summary for b in self.blocks.values())]

    def as_json(self) -> dict[str, Any]:
        """Return all scores by block; those of the unedited model are under `before`."""
        return {
            "method": self.method,
            "plan": self.plan,
            "best": self.best,
            "alike": list(self.alike),
            "before": {name: score.model_dump() for name, score in self.before.items()},
            "blocks": {
                str(block): {name: score.model_dump() for name, score in found.summary.items()}
                for block, found in self.blocks.items()
            },
        }


def sweep_blocks(
    edited: EditedModel,
    cases: Sequence[Case],
    methods: Mapping[int, Method],
    moments: Mapping[int, SecondMoment],
    results: Path,
    *,
    command: str | None = None,
    progress: Progress = no_progress,
    finish: Callable[[Sweep], None] = lambda sweep: None,
) -> Sweep:
    """Edit every case alone at every block; `methods` maps each block to the method set to it.

    `moments` holds the second moment of every block whose method needs one. `finish` is called
    with the result before the run is marked as finished.
    """
    some = next(iter(methods.values()))
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "parents": [patch.digest for patch in edited.patches],
        "methods": {str(b): method.model_dump(mode="json") for b, method in methods.items()},
        "method": some.name,
        "moments": {str(block): moment.digest for block, moment in moments.items()},
        "cases": [
            case.model_dump(mode="json", exclude_defaults=True, exclude={"references", "essence"})
            for case in cases
        ],
    }
    with run_folder(results, LABEL, params, command) as (folder, _):
        plan = f"{ALONE.words(len(cases), len(edited.patches))}, at each block"
        sweep = Sweep(folder, some.label, plan=plan)
        parts = Parts[dict[str, Any]](folder / "blocks", json_format())
        total = len(methods) * len(cases)
        for number, (block, method) in enumerate(methods.items()):
            at = shifted(progress, number * len(cases), total)
            place = folder / "blocks" / str(block)
            edit = partial(_edit_at, edited, cases, method, moments, place, at)
            found = parts.one(str(block), edit)
            with reading_own(place.with_suffix(".json")):
                _read(sweep, block, found)
            shutil.rmtree(place, ignore_errors=True)
            at(len(cases), len(cases))
        finish(sweep)
        write_results(
            folder,
            f"sweep of {sweep.method}, {folder.name}",
            [
                f"{plan}.",
                markdown_table(("block", *sweep.columns), sweep.table()),
                f"{sweep.verdict}.",
            ],
            sweep.as_json(),
            command=command,
        )
    return sweep


def _edit_at(
    edited: EditedModel,
    cases: Sequence[Case],
    method: Method,
    moments: Mapping[int, SecondMoment],
    place: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Edit each case alone, as a run in `place`; return the scores before and after, as JSON."""
    count = len(edited.patches)
    try:
        run = run_edits(edited, cases, method, moments, ALONE, place, progress=progress)
    finally:
        while len(edited.patches) > count:
            edited.undo()
    summary = {half: {n: s.model_dump() for n, s in run.summary[half].items()} for half in _HALVES}
    return {**summary, "magnitudes": _magnitudes(run)}


_HALVES = ("before", "after")


def _magnitudes(run: Run) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for kind in PROMPT_KINDS:
        rows = [
            [
                score.magnitude
                for score in case
                if score.kind == kind and score.magnitude is not None
            ]
            for case in run.after.scores
        ]
        found[kind] = [sum(row) / len(row) if row else None for row in rows]
    return found


def _read(sweep: Sweep, block: int, stored: dict[str, Any]) -> None:
    sweep.before = {name: Score.of(score) for name, score in stored["before"].items()}
    after = {name: Score.of(score) for name, score in stored["after"].items()}
    sweep.blocks[block] = BlockScores(after, stored["magnitudes"])


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(str(block) for block in blocks)


def percent(score: Score) -> str:
    """Return a share in whole percent, with its interval where it has one."""
    value, low, high = (f"{100 * x:z.0f}" for x in (score.value, score.low, score.high))
    return value if score.alone else f"{value} [{low}, {high}]"
