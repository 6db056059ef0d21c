"""Pictures of causal traces and of sweeps, by matplotlib (the extra `plot`), as PNG, PDF or SVG.

Tokens stand on the axis as a person reads them, the subject's with a star, what was restored in
the title. Characters that no installed font can draw are shown by their code, and named. The
figure grows with tokens and blocks, so that long prompts and deep models stay legible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from errata.core.errors import ErrataError
from errata.core.files import replacing
from errata.metrics.scores import Score, probability
from errata.tracing.averages import ROLES, Averages
from errata.tracing.settings import TITLES, Kind
from errata.tracing.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

FORMATS = ("png", "pdf", "svg")
COLOURS: Mapping[Kind, str] = {
    "hidden": "Purples",
    "mlp": "Greens",
    "attn": "Reds",
    "frozen-mlp": "Purples",
    "frozen-attn": "Purples",
}
LINES = ("#7b4fb3", "#3d85c6", "#c0392b", "#8a8a8a", "#c9a227", "#1e8449")
STYLES: Sequence[tuple[Any, str]] = (
    ("-", "o"),
    ((0, (2, 2)), "s"),
    ((0, (4, 3)), "^"),
    ((0, (4, 2, 1, 2)), "D"),
    ((0, (1, 1)), "v"),
    ((0, (6, 1)), "P"),
)
"""Dashes and marker of each line; with widths that fall, lines that coincide all stay visible."""
SWEPT = ("efficacy", "paraphrase", "neighbourhood", "same_subject_accuracy")
ACROSS = 3
LONGEST = 28
"""Characters of a token that are shown."""


def can_plot() -> bool:
    """Whether the extra is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches; raises `ErrataError` without the extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ErrataError(
            "pictures need an extra that is not installed", "pip install 'errata[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; its suffix tells the format."""
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ErrataError(
            f"a picture cannot be kept as {path.name}", f"choose of {', '.join(FORMATS)}"
        )
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=160)


def draw_trace(trace: Trace) -> tuple[Figure, str]:
    """Draw one fact's trace, a heat map per kind; also return the characters no font has."""
    drawable, families, missing = _drawable(_labels(trace))
    wide, tall = _extent(trace.blocks, len(trace.places))
    figure, axes = _panels(len(trace.kinds), wide + 0.9, tall + 1.0, 1.6)
    low = float(trace.low.mean())
    for index, (axis, kind) in enumerate(zip(axes, trace.kinds, strict=True)):
        image = _heat(axis, trace.mean(kind), COLOURS[kind], low)
        if index % ACROSS == 0:
            axis.set_yticks(range(len(drawable)), drawable, fontfamily=families, fontsize=8)
        axis.set_title(titled(kind, trace.window), fontsize=9)
        axis.set_xlabel("block", fontsize=8)
        bar = figure.colorbar(image, ax=axis, shrink=min(1.0, 3.0 / tall), pad=0.02)
        bar.ax.tick_params(labelsize=7)
    answer, _, lacks = _drawable([f"P({trace.answer})"])
    ends = f"{probability(trace.high)} clean, {probability(low)} corrupted"
    figure.suptitle(f"{answer[0]}: {ends}", fontsize=10, fontfamily=families)
    return figure, "".join(sorted(set(missing + lacks)))


def titled(kind: Kind, window: int) -> str:
    """Return what was restored, with the window where it has one."""
    title = f"restored: {TITLES[kind]}"
    if kind not in ("mlp", "attn"):
        return title
    return f"{title}, {window} block{'s' if window > 1 else ''}"


def draw_averages(averages: Averages, window: int) -> Figure:
    """Draw average indirect effects as heat maps of role by block, one per kind."""
    kinds, held = list(averages.effects), _held(averages)
    wide, _ = _extent(averages.blocks, len(ROLES))
    figure, axes = _panels(len(kinds), wide + 0.9, 2.3, 1.6)
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
    """Draw average indirect effects as lines over blocks, with their 95 % intervals."""
    kinds = list(averages.effects)
    figure, axes = _panels(len(kinds), max(3.2, 0.06 * averages.blocks + 1.4), 3.1, 0.4)
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


def draw_sweep(
    swept: Mapping[int, Mapping[str, Score]], traced: Mapping[str, Sequence[Score]], method: str
) -> Figure:
    """Draw what edits at each block did, and effects of a trace of the same facts, over blocks."""
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


def draw_line(
    axis: Axes, blocks: Array, ends: tuple[Array, Array, Array], label: str, number: int
) -> None:
    """Draw one line over blocks with its interval; the later its number, the finer."""
    value, low, high = ends
    (dashes, marker), colour = STYLES[number], LINES[number]
    finer = 0.68**number
    axis.plot(
        *(blocks, value),
        color=colour,
        label=label,
        linestyle=dashes,
        linewidth=1.0 + 3.0 * finer,
        marker=marker,
        markersize=2.5 + 5.5 * finer,
    )
    axis.fill_between(blocks, low, high, color=colour, alpha=0.15, linewidth=0)
    _whole_numbers(axis)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("block", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _whole_numbers(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _panels(count: int, wide: float, tall: float, left: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, at most three in a row, which share their vertical axis."""
    across = min(ACROSS, count)
    down = -(-count // across)
    figure = blank_figure(across * wide + left, down * tall + 0.5)
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _held(averages: Averages) -> list[int]:
    """Return the roles that some fact has."""
    return [i for i, role in enumerate(ROLES) if any(role in e for e in averages.effects.values())]


def _extent(blocks: int, tokens: int) -> tuple[float, float]:
    """Return width and height of a heat map in inches."""
    return max(1.8, 0.05 * blocks), max(1.4, 0.17 * tokens)


def _heat(axis: Axes, values: Array, colours: str, low: float) -> Any:
    top = max(float(np.nanmax(values)), low + 1e-3)
    image = axis.imshow(
        values, cmap=colours, vmin=low, vmax=top, aspect="auto", interpolation="nearest"
    )
    _whole_numbers(axis)
    axis.tick_params(axis="x", labelsize=7)
    return image


def _labels(trace: Trace) -> list[str]:
    first, end = trace.subject
    shown = []
    for place in trace.places:
        piece = readable(trace.tokens[place])
        shown.append(piece + ("*" if first <= place < end else ""))
    return shown


def readable(token: str) -> str:
    """Return a token on one line, cut where it is very long."""
    piece = token.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
    return piece if len(piece) <= LONGEST else piece[: LONGEST - 1] + "…"


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Return texts that can be drawn, the fonts to do so with, and the characters none has."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    families = ["DejaVu Sans"]
    own = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    lacking = {letter for text in texts for letter in text if ord(letter) not in own}
    for font in font_manager.fontManager.ttflist if lacking else ():
        try:
            held = FT2Font(font.fname).get_charmap()
        except (OSError, RuntimeError):
            continue
        found = {letter for letter in lacking if ord(letter) in held}
        if found and "Last Resort" not in font.name:
            families.append(font.name)
            lacking -= found
        if not lacking:
            break
    codes = {ord(letter): f"⟨{ord(letter):X}⟩" for letter in lacking}
    plain = [text.translate(codes).replace("$", r"\$") for text in texts]
    return plain, families, "".join(sorted(lacking))
