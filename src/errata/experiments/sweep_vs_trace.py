"""A sweep of edits and a causal trace of the same facts, side by side.

The unedited model is traced at the subject's last token, the position that edits write to. The
comparison follows arXiv 2301.04213, which asks whether tracing shows where to edit:
`variance_explained` returns the share of the variance of edit success (R²) that the block alone
explains, and the share with the fact's own tracing effect added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from errata.core.files import write_text
from errata.core.progress import Progress, no_progress
from errata.data.case import Case
from errata.experiments.block_sweep import Sweep
from errata.experiments.trace_run import noise_level, trace_cases
from errata.metrics.scores import Score
from errata.patches.edited_model import EditedModel
from errata.reports.figures import save_figure
from errata.reports.sweep_figure import draw_sweep
from errata.reports.tables import markdown_table
from errata.tracing.averages import LAST_SUBJECT, Recommendation, recommend
from errata.tracing.settings import Kind, TraceSettings
from errata.tracing.trace import Trace

Array = NDArray[np.float64]
TRACED: tuple[Kind, ...] = ("mlp", "hidden", "frozen-mlp")


class Comparison(NamedTuple):
    """How well block and tracing effect predict the success of edits, over facts x blocks."""

    facts: int
    by_block: float
    """R² of P(new) - P(true) after the edit, regressed on the block alone."""
    with_trace: float
    """R² of the regression on the block and the fact's own tracing effect there."""
    by_trace: float
    """R² of the regression on the tracing effect alone."""
    within: dict[int, float]
    """Pearson's correlation over facts, per block; blocks without variation are absent."""

    def as_json(self) -> dict[str, Any]:
        """Return the values by name."""
        return {**self._asdict(), "within": {str(b): r for b, r in self.within.items()}}


@dataclass(frozen=True)
class SideBySide:
    """The traces of a sweep's facts, compared with its edits."""

    effects: dict[str, list[Score]]
    """Average indirect effects at the subject's last token, by kind of state and block."""
    comparisons: dict[str, Comparison]
    """How well the MLP trace predicts the success of edits, per kind of prompt."""
    recommended: Recommendation | None
    note: str | None
    """Why nothing can be located, if corruption did not reduce the answers' probability."""
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return all fields by name."""
        return {
            "effects": {n: [s.as_json() for s in row] for n, row in self.effects.items()},
            "comparisons": {kind: one.as_json() for kind, one in self.comparisons.items()},
            "recommended": self.recommended and self.recommended.as_json(),
            **({"note": self.note} if self.note else {}),
            "left_out": list(self.left_out),
        }

    def sentences(self, sweep: Sweep) -> list[str]:
        """Return sentences on whether both agree, and on what the trace adds to the block."""
        found, alike = self.recommended, sweep.alike
        if found is None:
            return [str(self.note)]
        peak = f"{found.effect} recovered by {found.window} MLPs around block {found.peak}"
        agree = "is one of them" if found.peak in alike else "is not among them"
        lines = [f"the trace's peak, {peak}, {agree}" if alike else f"the trace's peak: {peak}"]
        for kind, one in self.comparisons.items():
            lines.append(
                f"{kind}, {one.facts} facts: the edited block explains {one.by_block:.0%} of the "
                f"variance; with the fact's tracing effect {one.with_trace:.0%}; the tracing "
                f"effect alone {one.by_trace:.0%}"
            )
        return lines


def side_by_side(
    edited: EditedModel,
    cases: Sequence[Case],
    sweep: Sweep,
    settings: TraceSettings,
    subjects: Sequence[str],
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> SideBySide:
    """Trace the sweep's facts and compare; the traces are a run in the sweep's folder.

    The noise level is measured on `subjects`, those of the whole dataset. Raises `ErrataError` if
    the model knows none of the facts.
    """
    chosen = settings.with_values(kinds=TRACED, subject_last_only=True)
    level, _ = noise_level(edited, chosen, subjects, cache)
    run = trace_cases(edited, cases, chosen, level, sweep.folder, progress=progress)
    effects = run.averages.effects
    blocks = list(sweep.blocks)
    comparisons = {}
    for kind in next(iter(sweep.blocks.values())).magnitudes:
        pairs = _pairs(run.traces, run.indices, sweep, kind)
        if len(pairs) > 2:
            traced, succeeded = map(np.array, zip(*pairs, strict=True))
            comparisons[kind] = variance_explained(traced, succeeded, blocks)
    window = run.traces[0].window
    names = {"mlp": f"MLP x {window}", "hidden": "hidden", "frozen-mlp": "hidden, MLPs severed"}
    return SideBySide(
        effects={names[kind]: effects[kind][LAST_SUBJECT] for kind in TRACED},
        comparisons=comparisons,
        recommended=recommend(run.traces),
        note=run.note,
        left_out=tuple(run.left_out),
    )


def _pairs(
    traces: Sequence[Trace], indices: Sequence[int], sweep: Sweep, kind: str
) -> list[tuple[list[float], list[float]]]:
    """Return the MLP effects and the edits' success of each fact, over the sweep's blocks."""
    found = []
    for trace, index in zip(traces, indices, strict=True):
        success = [one.magnitudes[kind][index] for one in sweep.blocks.values()]
        effect = trace.effect("mlp")[0]
        if all(value is not None for value in success):
            values = [float(value) for value in success if value is not None]
            found.append(([float(effect[block]) for block in sweep.blocks], values))
    return found


def save_sweep(sweep: Sweep, beside: SideBySide | None, formats: Sequence[str]) -> None:
    """Save a sweep's figures, and the comparison with its traces, in the sweep's folder."""
    effects = beside.effects if beside else {}
    if beside is not None:
        write_text(sweep.folder / "trace.json", json.dumps(beside.as_json(), indent=1) + "\n")
        lines = [
            f"# sweep of {sweep.method} and trace, side by side",
            f"{sweep.plan}.",
            markdown_table(("block", *sweep.columns, *effects), sweep.table(effects)),
            f"Percentages with 95 % intervals. {sweep.verdict}.",
            "\n".join(f"- {line}" for line in beside.sentences(sweep)),
        ]
        write_text(sweep.folder / "side_by_side.md", "\n\n".join(lines) + "\n")
    for form in formats:
        figure = draw_sweep(
            {block: found.summary for block, found in sweep.blocks.items()}, effects, sweep.method
        )
        save_figure(figure, sweep.folder / f"sweep.{form}")


def variance_explained(effects: Array, successes: Array, blocks: Sequence[int]) -> Comparison:
    """Regress the success of edits on block and tracing effect; both are (facts, blocks)."""
    count, wide = effects.shape
    y, x = successes.ravel(), effects.ravel()
    at = np.tile(np.eye(wide), (count, 1))  # (facts x blocks, blocks): one-hot blocks
    ones = np.ones((count * wide, 1))
    within = {
        block: float(np.corrcoef(effects[:, i], successes[:, i])[0, 1])
        for i, block in enumerate(blocks)
        if effects[:, i].std() > 1e-6 and successes[:, i].std() > 1e-6
    }
    return Comparison(
        facts=count,
        by_block=_explained(at, y),
        with_trace=_explained(np.hstack([at, x[:, None]]), y),
        by_trace=_explained(np.hstack([ones, x[:, None]]), y),
        within=within,
    )


def _explained(design: Array, y: Array) -> float:
    """Return R² of a least-squares fit."""
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - design @ fit) ** 2).sum()) / spread if spread > 0 else 0.0
