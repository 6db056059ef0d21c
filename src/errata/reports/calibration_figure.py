"""The figure of a calibration: what each choice of settings reaches, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from errata.reports.figures import LINES, blank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_DRIFT = 1e-6
"""Smaller drifts are drawn here, since the axis is logarithmic."""
SPECIAL = {"chosen": ("*", LINES[2], 150.0), "start": ("s", LINES[1], 45.0)}
"""Marker, colour and size of the points that are named."""


class Mark(NamedTuple):
    """One trial in the figure."""

    objectives: Mapping[str, float]
    merit: float
    """The harmonic mean of the objectives."""
    drift: float
    """KL divergence on text, nats per token."""
    on_front: bool
    name: str = ""


def draw_trade_off(marks: Sequence[Mark]) -> Figure:
    """Return a figure of all trials: each objective and their mean against the drift on text."""
    names = [*marks[0].objectives, "harmonic mean"]
    figure = blank_figure(2.7 * len(names) + 0.6, 3.1)
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, names, strict=True):
        _draw(axis, marks, name)
    axes[0].set_ylabel("share of prompts", fontsize=8)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=7, frameon=False, loc="outside lower center", ncols=len(labels)
    )
    return figure


def _draw(axis: Axes, marks: Sequence[Mark], name: str) -> None:
    groups = {
        "dominated": [mark for mark in marks if not mark.on_front and not mark.name],
        "Pareto front": [mark for mark in marks if mark.on_front and not mark.name],
        **{each: [mark for mark in marks if mark.name == each] for each in SPECIAL},
    }
    for label, group in groups.items():
        marker, colour, size = SPECIAL.get(label, ("o", LINES[0], 22.0))
        axis.scatter(
            [max(mark.drift, LEAST_DRIFT) for mark in group],
            [mark.objectives.get(name, mark.merit) for mark in group],
            s=size,
            marker=marker,
            color=LINES[3] if label == "dominated" else colour,
            alpha=0.45 if label == "dominated" else 0.9,
            linewidths=0,
            label=label,
            zorder=3 if label in SPECIAL else 2,
        )
    axis.set_xscale("log")
    axis.set_ylim(-0.03, 1.03)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel("KL on text, nats per token", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
