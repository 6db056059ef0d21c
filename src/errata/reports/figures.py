"""Pictures of causal traces and of sweeps, by matplotlib (the extra `plot`), as PNG, PDF or SVG.

Tokens stand on the axis as a person reads them, the subject's with a star, what was restored in
the title. Characters that no installed font can draw are shown by their code, and named. The
figure grows with tokens and blocks, so that long prompts and deep models stay legible.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from errata.core.errors import ErrataError
from errata.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = NDArray[np.float64]

FORMATS = ("png", "pdf", "svg")
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
