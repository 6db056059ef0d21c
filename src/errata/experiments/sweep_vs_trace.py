"""A sweep of edits and a causal trace of the same facts, side by side.

The facts are traced as they are before any edit, at the subject's last token, where editors
write. What the two say together is arXiv 2301.04213's question: does tracing tell where to edit?
`variance_explained` returns the share of the variance of edit success that the block alone
explains, and what the facts' own tracing effects add.
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
from errata.tracing.averages import LAST_SUBJECT, Recommendation, average, nothing_lost, recommend
from errata.tracing.settings import Kind, TraceSettings
from errata.tracing.trace import Trace

Array = NDArray[np.float64]
TRACED: tuple[Kind, ...] = ("mlp", "hidden", "frozen-mlp")


class Comparison(NamedTuple):
    """How the success of edits goes with block and with tracing effect, over facts x blocks."""

    facts: int
    by_block: float
    """R² of P(new) - P(true) after the edit on the block alone."""
    with_trace: float
    """R² with the fact's own tracing effect at the block besides."""
    by_trace: float
    """R² on the tracing effect alone."""
    within: dict[int, float]
    """Per block, Pearson's correlation over facts; blocks where nothing varies are absent."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return {**self._asdict(), "within": {str(b): r for b, r in self.within.items()}}


@dataclass(frozen=True)
class SideBySide:
    """What the traces of a sweep's facts say."""

    effects: dict[str, list[Score]]
    """Average indirect effects at the subject's last token: by what was restored, then block."""
    comparisons: dict[str, Comparison]
    """How editing success goes with the MLP trace, per kind of prompt."""
    recommended: Recommendation | None
    note: str | None
    """Why the traces say nothing, where they do not."""
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return {
            "effects": {n: [s.as_json() for s in row] for n, row in self.effects.items()},
            "comparisons": {kind: one.as_json() for kind, one in self.comparisons.items()},
            "recommended": self.recommended and self.recommended.as_json(),
            **({"note": self.note} if self.note else {}),
            "left_out": list(self.left_out),
        }

    def sentences(self, sweep: Sweep) -> list[str]:
        """Say in words where both agree, and what the trace adds to knowing the block."""
        found, alike = self.recommended, sweep.alike
        if found is None:
            return [str(self.note)]
        peak = f"{found.effect} given back by {found.window} MLPs around block {found.peak}"
        agree = "is one of them" if found.peak in alike else "is none of them"
        said = [f"the trace's peak, {peak}, {agree}" if alike else f"the trace's peak: {peak}"]
        for kind, one in self.comparisons.items():
            said.append(
                f"{kind}, {one.facts} facts: which block was edited explains {one.by_block:.0%} of "
                f"the variance; with the fact's own tracing effect {one.with_trace:.0%}; the "
                f"tracing effect alone {one.by_trace:.0%}"
            )
        return said


def side_by_side(
    edited: EditedModel,
    cases: Sequence[Case],
    sweep: Sweep,
    settings: TraceSettings,
    subjects: Sequence[str],
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> SideBySide:
    """Trace the sweep's facts, kept under the sweep's folder, and compare.

    Noise is measured on `subjects`, those of the whole dataset.
    """
    chosen = settings.with_values(kinds=TRACED, subject_last_only=True)
    level, _ = noise_level(edited, chosen, subjects, cache)
    run = trace_cases(edited, cases, chosen, level, sweep.folder, progress=progress)
    effects = average(run.traces).effects
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
        note=nothing_lost(run.traces),
        left_out=tuple(run.left_out),
    )


def _pairs(
    traces: Sequence[Trace], indices: Sequence[int], sweep: Sweep, kind: str
) -> list[tuple[list[float], list[float]]]:
    """Return per fact its MLP effects and its edits' success, over the sweep's blocks."""
    found = []
    for trace, index in zip(traces, indices, strict=True):
        success = [one.magnitudes[kind][index] for one in sweep.blocks.values()]
        effect = trace.effect("mlp")[0]
        if all(value is not None for value in success):
            held = [float(value) for value in success if value is not None]
            found.append(([float(effect[block]) for block in sweep.blocks], held))
    return found


def keep_sweep(sweep: Sweep, beside: SideBySide | None, formats: Sequence[str]) -> None:
    """Keep pictures of a sweep, and what the traces say beside it, in the sweep's folder."""
    effects = beside.effects if beside else {}
    if beside is not None:
        write_text(sweep.folder / "trace.json", json.dumps(beside.as_json(), indent=1) + "\n")
        lines = [
            f"# sweep of {sweep.method} and trace, side by side",
            markdown_table(("block", *sweep.columns, *effects), sweep.table(effects)),
            f"Percent, with 95 % intervals. {sweep.verdict}.",
            "\n".join(f"- {line}" for line in beside.sentences(sweep)),
        ]
        write_text(sweep.folder / "side_by_side.md", "\n\n".join(lines) + "\n")
    for form in formats:
        figure = draw_sweep(
            {block: found.summary for block, found in sweep.blocks.items()}, effects, sweep.method
        )
        save_figure(figure, sweep.folder / f"sweep.{form}")


def variance_explained(effects: Array, successes: Array, blocks: Sequence[int]) -> Comparison:
    """Hold tracing effects against the success of edits: (facts, blocks) each."""
    count, wide = effects.shape
    y, x = successes.ravel(), effects.ravel()
    at = np.tile(np.eye(wide), (count, 1))  # (facts x blocks, blocks): which block it is
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
