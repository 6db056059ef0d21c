"""A sweep of edits over blocks: each fact edited alone at each block, and what became of it.

    results/sweep/run_<NNN>/  params.json summary.json report.md blocks/<B>.json

It answers directly what a causal trace can only suggest: where edits work. The two are known to
disagree (arXiv 2301.04213), so both can stand side by side (see `sweep_trace`).
A stopped sweep goes on at the case where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.files import reading_own, write_text
from errata.core.progress import Progress, no_progress, shifted
from errata.data.case import Case
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.parts import Parts, json_format
from errata.experiments.run_folder import run_folder
from errata.methods import Method
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.scores import Score
from errata.patches.edited_model import EditedModel
from errata.reports.tables import markdown_table
from errata.statistics.second_moment import SecondMoment

LABEL = "sweep"
SPARED = "same_subject_accuracy"
SHOWN = (*PROMPT_KINDS, "score", SPARED)
"""The figures that are shown, where they are known."""
MERITS = ("score", PROMPT_KINDS[0], f"{PROMPT_KINDS[0]}_accuracy")
"""What blocks are compared by: the first that is known. The last needs no true answers."""


class BlockScores(NamedTuple):
    """What edits at one block did."""

    summary: dict[str, Score]
    magnitudes: dict[str, list[float | None]]
    """Per kind of prompt and case, the mean of P(right) - P(wrong)."""


@dataclass
class Sweep:
    """What a sweep found, by block."""

    folder: Path
    method: str
    before: dict[str, Score] = field(default_factory=dict)
    blocks: dict[int, BlockScores] = field(default_factory=dict)

    @property
    def merit(self) -> str:
        """The figure by which blocks are compared."""
        return next(m for m in MERITS if all(m in b.summary for b in self.blocks.values()))

    @property
    def alike(self) -> tuple[int, ...]:
        """The block with the highest figure, and those no lower than its interval reaches.

        None where even its interval reaches down to the figure before any edit. That intervals
        overlap would not do: those of few facts do so also where one edit took and none did.
        """
        scores = {block: found.summary[self.merit] for block, found in self.blocks.items()}
        top = max(scores.values(), key=lambda score: score.value)
        before = self.before[self.merit].value if self.merit in self.before else 0.0
        if top.low <= before:
            return ()
        return tuple(block for block, score in scores.items() if score.value >= top.low)

    @property
    def _highest(self) -> list[int]:
        """Of those the ones whose figure is highest, in whole percent as it is shown."""
        shown = {b: round(100 * self.blocks[b].summary[self.merit].value) for b in self.alike}
        return [block for block, value in shown.items() if value == max(shown.values())]

    @property
    def best(self) -> int | None:
        """The block with the highest figure; of equals the one that spares other facts most.

        None where edits work at no block.
        """
        known = all(SPARED in found.summary for found in self.blocks.values())

        def rank(block: int) -> tuple[float, float]:
            summary = self.blocks[block].summary
            return summary[SPARED].value if known else 0.0, summary[self.merit].value

        return max(self._highest, key=rank, default=None)

    @property
    def verdict(self) -> str:
        """Where edits work, in a sentence."""
        name, best = self.merit, self.best
        if best is None:
            top = max((b.summary[name] for b in self.blocks.values()), key=lambda s: s.value)
            said = f"edits work at none of these blocks: {name} at most {percent(top)} %"
            known = self.before.get(name)
            return said + (f", {100 * known.value:.0f} % before any edit" if known else "")
        figure = f"{name} {percent(self.blocks[best].summary[name])} %"
        if len(self.alike) == 1:
            return f"edits work best at block {best}: {figure}"
        said = f"edits work alike at blocks {_listed(self.alike)}: {figure}"
        if len(self._highest) == 1:
            return f"{said}, highest at block {best}"
        if SPARED not in self.blocks[best].summary:
            return said
        equals = f"blocks {_listed(self._highest)}, which are highest,"
        return (
            f"{said}; of {'them' if tuple(self._highest) == self.alike else equals} block {best} "
            f"spares the subjects' other facts most, {self.blocks[best].summary[SPARED]}"
        )

    def table(self, traced: Mapping[str, Sequence[Score]] | None = None) -> list[list[str]]:
        """Return rows of block and figures in percent, effects of a trace beside them."""
        rows = []
        for block, found in self.blocks.items():
            row = [str(block), *(percent(found.summary[name]) for name in self.columns)]
            rows.append(row + [percent(scores[block]) for scores in (traced or {}).values()])
        return rows

    @property
    def columns(self) -> list[str]:
        """The figures that every block has."""
        names = (
            SHOWN if PROMPT_KINDS[0] in next(iter(self.blocks.values())).summary else MERITS + SHOWN
        )
        return [name for name in names if all(name in b.summary for b in self.blocks.values())]

    def as_json(self) -> dict[str, Any]:
        """Return all scores by block, those before any edit under `before`."""
        return {
            "method": self.method,
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
    """Edit every case alone at every block; `methods` holds the method with its block set.

    `finish` is called with what was found before the run counts as finished.
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
        sweep = Sweep(folder, some.label)
        parts = Parts[dict[str, Any]](folder / "blocks", json_format())
        total = len(methods) * len(cases)
        for number, (block, method) in enumerate(methods.items()):
            at = shifted(progress, number * len(cases), total)
            room = folder / "blocks" / str(block)
            edit = partial(_edit_at, edited, cases, method, moments, room, at)
            found = parts.one(str(block), edit)
            with reading_own(room.with_suffix(".json")):
                _read(sweep, block, found)
            shutil.rmtree(room, ignore_errors=True)
            at(len(cases), len(cases))
        finish(sweep)
        write_text(folder / "report.md", _report(sweep, len(cases), command))
        write_text(folder / "summary.json", json.dumps(sweep.as_json(), indent=1) + "\n")
    return sweep


def _edit_at(
    edited: EditedModel,
    cases: Sequence[Case],
    method: Method,
    moments: Mapping[int, SecondMoment],
    room: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Edit each case alone, as a run in `room`; return the scores before and after, as JSON."""
    held = len(edited.patches)
    try:
        run = run_edits(
            edited, cases, method, moments, EditPlan(batch_size=1), room, progress=progress
        )
    finally:
        while len(edited.patches) > held:
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
            for case in run.after
        ]
        found[kind] = [sum(row) / len(row) if row else None for row in rows]
    return found


def _read(sweep: Sweep, block: int, kept: dict[str, Any]) -> None:
    sweep.before = {name: Score.of(score) for name, score in kept["before"].items()}
    after = {name: Score.of(score) for name, score in kept["after"].items()}
    sweep.blocks[block] = BlockScores(after, kept["magnitudes"])


def _report(sweep: Sweep, count: int, command: str | None) -> str:
    lines = [
        f"# sweep of {sweep.method}, {sweep.folder.name}",
        markdown_table(("block", *sweep.columns), sweep.table()),
        f"{count} facts, each edited alone at each block: {sweep.verdict}.",
        *([f"Made by `{command}`."] if command else []),
    ]
    return "\n\n".join(lines) + "\n"


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(str(block) for block in blocks)


def percent(score: Score) -> str:
    """Return a share in whole percent, with its interval where it has one."""
    value, low, high = (f"{100 * x:z.0f}" for x in (score.value, score.low, score.high))
    return value if score.alone else f"{value} [{low}, {high}]"
