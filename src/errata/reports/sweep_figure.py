"""The figure of a block sweep: scores of edits at each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from errata.metrics.scores import Score
from errata.reports.figures import blank_figure, draw_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEPT = ("efficacy", "paraphrase", "neighbourhood", "same_subject_accuracy")


def draw_sweep(
    swept: Mapping[int, Mapping[str, Score]], traced: Mapping[str, Sequence[Score]], method: str
) -> Figure:
    """Return a figure of scores of edits at each block, beside tracing effects of the same facts.

    `swept` holds scores by block; `traced` per line one score per block of the model.
    """
    blocks = np.array(list(swept))
    names = [n for n in SWEPT if all(n in scores for scores in swept.values())]
    panels = {
        f"edits with {method} at one block": {
            name: [scores[name] for scores in swept.values()] for name in names
        }
    }
    if traced:
        panels["restored at the subject's last token"] = {
            name: [row[block] for block in blocks] for name, row in traced.items()
        }
    measures = "share of prompts, 95 % interval", "average indirect effect, 95 % interval"
    measured = dict(zip(panels, measures, strict=False))
    figure = blank_figure(len(panels) * max(3.8, 0.06 * len(blocks) + 1.4), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, row) in enumerate(lines.items()):
            ends = [np.array([getattr(s, end) for s in row]) for end in ("value", "low", "high")]
            draw_line(axis, blocks.astype(float), (ends[0], ends[1], ends[2]), name, number)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel(measured[title], fontsize=8)
        axis.set_ylim(-0.03, 1.03)
        axis.legend(fontsize=7, frameon=False)
    return figure
