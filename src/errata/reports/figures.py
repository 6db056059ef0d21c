"""What all figures share: creating and saving them with matplotlib (the extra `plot`).

Characters that no installed font has are shown as their code points. Figures grow with the
number of tokens and blocks, so that long prompts and deep models stay legible.
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
"""Dashes and marker of each line; as widths decrease, lines that coincide all stay visible."""
ACROSS = 3
"""Panels in a row, at most."""
LONGEST = 28
"""Maximum number of characters of a token label."""


def can_plot() -> bool:
    """Whether the extra is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; raises `ErrataError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ErrataError(
            "pictures need an extra that is not installed", "pip install 'errata-lm[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write a figure atomically in the format of the path's suffix, one of `FORMATS`.

    Raises `ErrataError` for another suffix.
    """
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ErrataError(
            f"cannot save a figure as {path.name}", f"use a suffix of {', '.join(FORMATS)}"
        )
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=dpi)


def draw_line(
    axis: Axes, blocks: Array, ends: tuple[Array, Array, Array], label: str, number: int
) -> None:
    """Draw a line over blocks with its interval; lines with higher numbers are thinner."""
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
    use_integer_ticks(axis)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("block", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def use_integer_ticks(axis: Axes) -> None:
    """Put the ticks of the horizontal axis at integers only."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def panel_grid(count: int, wide: float, tall: float, left: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` panels, at most `ACROSS` in a row, with a common vertical axis.

    A panel is `wide` by `tall` inches; `left` inches are added for labels.
    """
    across = min(ACROSS, count)
    down = -(-count // across)
    figure = blank_figure(across * wide + left, down * tall + 0.5)
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def readable(token: str) -> str:
    """Return a token as a label on one line, truncated to `LONGEST` characters."""
    piece = token.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
    return piece if len(piece) <= LONGEST else piece[: LONGEST - 1] + "…"


def with_fonts(texts: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Return texts that matplotlib can draw, the font families for them, and missing characters.

    A character that no installed font has is replaced by its code point, as in ⟨1F600⟩.
    """
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
