"""Figures of causal traces: one fact as heat maps, averages as heat maps and lines.

Tokens are labels of the vertical axis, those of the subject with a star; the title says what was
restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from errata.core.text import probability
from errata.reports.figures import (
    ACROSS,
    Array,
    draw_line,
    panel_grid,
    readable,
    use_integer_ticks,
    with_fonts,
)
from errata.tracing.averages import ROLES, Averages
from errata.tracing.settings import TITLES, Kind
from errata.tracing.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[Kind, str] = {
    "hidden": "Purples",
    "mlp": "Greens",
    "attn": "Reds",
    "frozen-mlp": "Purples",
    "frozen-attn": "Purples",
}


def draw_trace(trace: Trace) -> tuple[Figure, str]:
    """Return the figure of one trace, a heat map per kind, and the characters that no font has."""
    drawable, families, missing = with_fonts(_labels(trace))
    wide, tall = _extent(trace.blocks, len(trace.places))
    figure, axes = panel_grid(len(trace.kinds), wide + 0.9, tall + 1.0, 1.6)
    low = float(trace.low.mean())
    for index, (axis, kind) in enumerate(zip(axes, trace.kinds, strict=True)):
        image = _heat(axis, trace.mean(kind), COLOURS[kind], low)
        if index % ACROSS == 0:
            axis.set_yticks(range(len(drawable)), drawable, fontfamily=families, fontsize=8)
        axis.set_title(titled(kind, trace.window), fontsize=9)
        axis.set_xlabel("block", fontsize=8)
        bar = figure.colorbar(image, ax=axis, shrink=min(1.0, 3.0 / tall), pad=0.02)
        bar.ax.tick_params(labelsize=7)
    answer, _, lacks = with_fonts([f"P({trace.answer})"])
    ends = f"{probability(trace.high)} clean, {probability(low)} corrupted"
    figure.suptitle(f"{answer[0]}: {ends}", fontsize=10, fontfamily=families)
    return figure, "".join(sorted(set(missing + lacks)))


def titled(kind: Kind, window: int) -> str:
    """Return a panel's title: what was restored, with the size of the window if there is one."""
    title = f"restored: {TITLES[kind]}"
    if kind not in ("mlp", "attn"):
        return title
    return f"{title}, {window} block{'s' if window > 1 else ''}"


def draw_averages(averages: Averages, window: int) -> Figure:
    """Return a figure of average indirect effects: a heat map of role by block for each kind."""
    kinds, held = list(averages.effects), _held(averages)
    wide, _ = _extent(averages.blocks, len(ROLES))
    figure, axes = panel_grid(len(kinds), wide + 0.9, 2.3, 1.6)
    for index, (axis, kind) in enumerate(zip(axes, kinds, strict=True)):
        image = _heat(axis, averages.values(kind)[held], COLOURS[kind], 0.0)
        if index % ACROSS == 0:
            axis.set_yticks(range(len(held)), [ROLES[role] for role in held], fontsize=8)
        axis.set_title(titled(kind, window), fontsize=9)
        axis.set_xlabel("block", fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.9, pad=0.02).ax.tick_params(labelsize=7)
    figure.suptitle(f"average indirect effect, {averages.facts} facts", fontsize=10)
    return figure


def draw_lines(averages: Averages, window: int) -> Figure:
    """Return a figure of average indirect effects: lines over blocks with 95 % intervals."""
    kinds = list(averages.effects)
    figure, axes = panel_grid(len(kinds), max(3.2, 0.06 * averages.blocks + 1.4), 3.1, 0.4)
    blocks = np.arange(averages.blocks, dtype=float)
    for axis, kind in zip(axes, kinds, strict=True):
        value, low, high = (averages.values(kind, end) for end in ("value", "low", "high"))
        for role in _held(averages):
            ends = value[role], low[role], high[role]
            draw_line(axis, blocks, ends, ROLES[role], role)
        axis.set_title(titled(kind, window), fontsize=9)
    axes[0].set_ylabel("average indirect effect", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    figure.suptitle(f"{averages.facts} facts, 95 % intervals", fontsize=10)
    return figure


def _held(averages: Averages) -> list[int]:
    """Return the indices of the roles that at least one fact has."""
    return [i for i, role in enumerate(ROLES) if any(role in e for e in averages.effects.values())]


def _extent(blocks: int, tokens: int) -> tuple[float, float]:
    """Return width and height of a heat map in inches."""
    return max(1.8, 0.05 * blocks), max(1.4, 0.17 * tokens)


def _heat(axis: Axes, values: Array, colours: str, low: float) -> Any:
    top = max(float(np.nanmax(values)), low + 1e-3)
    image = axis.imshow(
        values, cmap=colours, vmin=low, vmax=top, aspect="auto", interpolation="nearest"
    )
    use_integer_ticks(axis)
    axis.tick_params(axis="x", labelsize=7)
    return image


def _labels(trace: Trace) -> list[str]:
    first, end = trace.subject
    shown = []
    for place in trace.places:
        piece = readable(trace.tokens[place])
        shown.append(piece + ("*" if first <= place < end else ""))
    return shown
