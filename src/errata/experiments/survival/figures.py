"""Figures of a matrix: success rates, the probability of each edit, displacement of states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.experiments.survival.measure import ROUNDING
from errata.experiments.survival.summary import Configuration
from errata.reports.figures import blank_figure, can_plot, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f4e79", "#c0504d", "#5a8f3c", "#7d5ba6", "#d08c2f", "#4bacc6", "#7f7f7f",
           "#222222", "#c78fb5", "#8c6d31")  # fmt: skip
CLASS_COLOURS = {
    "stable": "#5a8f3c",
    "erased": "#c0504d",
    "emergent": "#4bacc6",
    "impossible": "#7f7f7f",
}


def write_plots(folder: Path, configurations: Sequence[Configuration]) -> list[Path]:
    """Write the figures and return their paths; none if matplotlib is not installed."""
    if not can_plot():
        return []
    most = max(each.edits for each in configurations)
    largest = [each for each in configurations if each.edits == most]
    found = []
    for name, draw, some in (
        ("survival", _survival, configurations),
        ("probabilities", _probabilities, largest),
        ("displacement", _displacement, largest),
    ):
        path = folder / f"{name}.png"
        save_figure(draw(some), path, dpi=110)
        found.append(path)
    return found


def _unique(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _survival(configurations: Sequence[Configuration]) -> Figure:
    """Success rate before (dotted) and after tuning, by tuning, method and number of edits."""
    counts = sorted({each.edits for each in configurations})
    methods = _unique([each.method for each in configurations])
    tunings = _unique([each.tuning for each in configurations])
    figure = blank_figure(max(5.0, 1.0 + 0.62 * len(tunings) * len(counts) + 2), 4.2)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    width = 0.8 / len(methods)
    for panel, count in zip(panels, counts, strict=True):
        for m, method in enumerate(methods):
            some = {e.tuning: e for e in configurations if (e.edits, e.method) == (count, method)}
            for t, tuning in enumerate(tunings):
                if tuning not in some:
                    continue
                at = t + (m - (len(methods) - 1) / 2) * width
                before = some[tuning].figures["efficacy_edited"]
                after = some[tuning].figures["efficacy_edited_tuned"]
                panel.bar(
                    at,
                    100 * after.value,
                    width * 0.92,
                    color=COLOURS[m % len(COLOURS)],
                    label=method if t == 0 else None,
                )
                ends = [[100 * (after.value - after.low)], [100 * (after.high - after.value)]]
                panel.errorbar(at, 100 * after.value, ends, color="black", linewidth=0.9, capsize=2)
                panel.plot([at - width / 2, at + width / 2], [100 * before.value] * 2,
                           color="black", linestyle=":", linewidth=1.1)  # fmt: skip
        panel.set_xticks(range(len(tunings)), tunings, rotation=35, ha="right")
        panel.set_title(f"{count} edits", fontsize=10)
        panel.set_ylim(0, 105)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("edits that work after tuning, %\n(dots: before)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(methods), frameon=False)
    return figure


def _probabilities(configurations: Sequence[Configuration]) -> Figure:
    """P(new) of every edit before and after tuning, coloured by its class."""
    methods = _unique([each.method for each in configurations])
    tunings = _unique([each.tuning for each in configurations])
    figure = blank_figure(max(4.8, 1.6 * len(tunings) + 0.8), 1.7 * len(methods) + 0.8)
    panels = figure.subplots(len(methods), len(tunings), sharex=True, sharey=True, squeeze=False)
    for each in configurations:
        row, column = methods.index(each.method), tunings.index(each.tuning)
        panel = panels[row][column]
        before, after = each.probabilities("edited"), each.probabilities("edited_tuned")
        first = [classes[0] for classes in each.classes()]
        for name, colour in CLASS_COLOURS.items():
            picked = [i for i, found in enumerate(first) if found == name]
            panel.scatter(
                [before[i] for i in picked],
                [after[i] for i in picked],
                s=7,
                color=colour,
                alpha=0.7,
                linewidths=0,
                label=name,
            )
        panel.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.7, zorder=0)
    for column, tuning in enumerate(tunings):
        panels[0][column].set_title(tuning, fontsize=9)
    for row, method in enumerate(methods):
        panels[row][0].set_ylabel(method, fontsize=9)
    for panel in figure.axes:
        panel.set_xlim(-0.03, 1.03)
        panel.set_ylim(-0.03, 1.03)
        panel.set_xticks([0, 1])
        panel.set_yticks([0, 1])
    figure.supxlabel("P(new target) after the edit", fontsize=9)
    figure.supylabel("P(new target) after tuning", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False,
                  markerscale=2)  # fmt: skip
    return figure


def _displacement(configurations: Sequence[Configuration]) -> Figure:
    """Displacement of the last subject token's state by edit and tuning, and their cosine."""
    methods = _unique([each.method for each in configurations])
    tunings = _unique([each.tuning for each in configurations])
    width = max(6.4, 3.1 * len(methods) + 1.2)
    figure = blank_figure(width, 5.4)
    panels = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False)
    for column, method in enumerate(methods):
        above, below = panels[0][column], panels[1][column]
        some = [each for each in configurations if each.method == method]
        for i, each in enumerate(some):
            found = each.displaced()
            blocks = range(len(found["edit"]))
            if i == 0:
                _line(above, blocks, found["edit"], "black", "edit", "--")
            colour = COLOURS[tunings.index(each.tuning) % len(COLOURS)]
            _line(above, blocks, found["tune"], colour, each.tuning)
            moved = [
                b for b in blocks if min(found[k][b].value for k in ("edit", "tune")) > ROUNDING
            ]
            _line(below, moved, [found["cosine"][b] for b in moved], colour, each.tuning)
        above.set_title(method, fontsize=10)
        below.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        below.set_xlabel("block")
        for panel in (above, below):
            panel.spines[["top", "right"]].set_visible(False)
        above.set_ylim(bottom=0)
    panels[0][0].set_ylabel("displacement relative\nto the state's norm")
    panels[1][0].set_ylabel("cosine of displacements\nby tuning and by edit")
    handles, labels = panels[0][0].get_legend_handles_labels()
    columns = min(int(width / 1.55), len(labels))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False,
                  fontsize=9)  # fmt: skip
    return figure


def _line(
    panel: Any, at: Sequence[int], scores: Sequence[Any], colour: str, label: str, style: str = "-"
) -> None:
    panel.plot(at, [s.value for s in scores], style, color=colour, label=label, linewidth=1.5)
    panel.fill_between(
        at, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.15, linewidth=0
    )
