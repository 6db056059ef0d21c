"""Pictures of traces: every format, any size, any script; and the terminal's."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from errata.cli import console
from errata.core.errors import ErrataError
from errata.core.text import probability
from errata.metrics.scores import Score
from errata.reports import figures, sweep_figure, trace_figures
from errata.tracing.averages import average
from errata.tracing.settings import TITLES, TRACE_KINDS
from errata.tracing.trace import Trace


def made(tokens: tuple[str, ...], blocks: int, kinds: tuple[str, ...] = ("mlp",)) -> Trace:
    source = np.random.default_rng(0)
    scores = {k: source.random((len(tokens), blocks, 3)).astype(np.float32) for k in kinds}
    low = np.full(3, 0.05, np.float32)
    places = tuple(range(len(tokens)))
    return Trace("text", tokens, (1, 3), "巴黎", "巴黎", places, 10, 0.3, scores, low, 0.98)


@pytest.fixture(autouse=True)
def no_warnings() -> object:
    """Matplotlib warns of glyphs that it cannot draw and layouts that do not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("form", figures.FORMATS)
def test_every_format(tmp_path: Path, form: str) -> None:
    figure, _ = trace_figures.draw_trace(made(("The", " {}", " Tower", " is"), 6, TRACE_KINDS))
    figures.save_figure(figure, tmp_path / f"trace.{form}")
    start = (tmp_path / f"trace.{form}").read_bytes()[:5]
    assert start == {"png": b"\x89PNG\r", "pdf": b"%PDF-", "svg": b"<?xml"}[form]
    with pytest.raises(ErrataError, match="cannot save a figure"):
        figures.save_figure(figure, tmp_path / "trace.bmp")


def test_titles_and_tokens_are_on_it() -> None:
    figure, _ = trace_figures.draw_trace(made((" In", " Eiffel", " Tower", " is"), 6, TRACE_KINDS))
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = [axis.get_title() for axis in panels]
    for kind, title in zip(TRACE_KINDS, titles, strict=True):
        assert TITLES[kind] in title
        assert ("10 blocks" in title) == (kind in ("mlp", "attn"))
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == ["In", "Eiffel*", "Tower*", "is"]


def test_scripts_without_a_font_go_by_their_codes(tmp_path: Path) -> None:
    tokens = ("<s>", "東₁", "東₂", " Башня", "\u0378", " $x$", "\n", " ")
    figure, lacking = trace_figures.draw_trace(made(tokens, 4))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[4] == "⟨378⟩" and "\u0378" in lacking
    assert labels[3] == "Башня" and "Б" not in lacking
    assert labels[5:] == [r"\$x\$", "↵", "␣"]
    assert labels[1] == ("⟨6771⟩₁*" if "東" in lacking else "東₁*")
    figures.save_figure(figure, tmp_path / "trace.png")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1, "1.00"), (0.125, "0.12"), (0.01, "0.01"), (0.0051, "0.0051"), (3.14e-5, "3.1e-05")],
)
def test_small_probabilities_are_not_shown_as_none(value: float, shown: str) -> None:
    assert probability(value) == shown and probability(-value) == f"-{shown}"
    assert probability(0.0) == probability(-0.0) == "0.00" and probability(0.125, 3) == "0.125"
    trace = replace(made(("a", "b", "c"), 2), low=np.full(3, value / 2, np.float32), high=value)
    figure, _ = trace_figures.draw_trace(trace)
    ends = f"{probability(value)} clean, {probability(value / 2)} corrupted"
    assert figure.get_suptitle().endswith(ends)


@pytest.mark.parametrize(("count", "blocks"), [(70, 12), (8, 80), (2, 1)])
def test_it_grows_with_what_it_shows(tmp_path: Path, count: int, blocks: int) -> None:
    figure, _ = trace_figures.draw_trace(
        made(tuple(f" a long token {i}" for i in range(count)), blocks)
    )
    panel = figure.axes[0]
    figures.save_figure(figure, tmp_path / "trace.png")
    box = panel.get_window_extent()
    assert box.height / count >= 0.9 * 8 / 72 * figure.dpi  # a line of its label fits into a row
    assert box.width / blocks >= 2


def test_averages_and_sweeps(tmp_path: Path) -> None:
    averages = average([made(("a", "b", "c", "d", "e"), 8, ("hidden", "mlp", "attn"))] * 3)
    score = Score(value=0.5, low=0.4, high=0.6, n=3)
    swept = {block: {"efficacy": score, "paraphrase": score} for block in (1, 4)}
    traced = {"MLP": [score] * 8}
    for name, figure in (
        ("heat", trace_figures.draw_averages(averages, 2)),
        ("lines", trace_figures.draw_lines(averages, 2)),
        ("sweep", sweep_figure.draw_sweep(swept, traced, "ROME")),
    ):
        figures.save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_lines_that_coincide_are_told_apart(tmp_path: Path) -> None:
    score, less = (Score(value=v, low=v - 0.1, high=v + 0.1, n=3) for v in (0.5, 0.4))
    named = dict.fromkeys(sweep_figure.SWEPT, score)
    traced = {"MLP": [score] * 4, "hidden": [score] * 4, "severed": [less] * 4}
    figure = sweep_figure.draw_sweep(dict.fromkeys(range(4), named), traced, "ROME")
    edits, restored = figure.axes
    assert edits.get_ylabel() and restored.get_ylabel()
    assert edits.get_ylabel() != restored.get_ylabel()
    for axis in figure.axes:
        lines = axis.get_lines()
        assert len({(str(line.get_linestyle()), line.get_marker()) for line in lines}) == len(lines)
        widths = [line.get_linewidth() for line in lines]
        assert widths == sorted(set(widths), reverse=True)  # a later one leaves an edge of it
    figures.save_figure(figure, tmp_path / "sweep.png")
    seen = _colours(tmp_path / "sweep.png")
    assert {line.get_color() for line in edits.get_lines()} <= seen


def _colours(path: Path) -> set[str]:
    """Return the colours, as #rrggbb, of more than a few points of a picture."""
    import matplotlib.image

    image = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    held, counts = np.unique(image, axis=0, return_counts=True)
    return {"#{:02x}{:02x}{:02x}".format(*rgb) for rgb in held[counts > 60]}


def test_a_heat_map_in_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(width: int, colour: str | None) -> str:
        made = Console(
            file=io.StringIO(),
            width=width,
            color_system=colour,
            force_terminal=bool(colour),
            soft_wrap=True,
        )
        monkeypatch.setattr(console, "_console", lambda stderr=False: made)
        rows = [[0.0] * 7 + [1.0], [0.5] * 8]
        console.heat_map("title", ("東京", "a token that is far too long to be shown"), rows, 0, 1)
        return str(made.file.getvalue())  # type: ignore[union-attr]

    plain = shown(60, None).splitlines()
    assert plain[0] == "title" and plain[1].split() == ["0", "5"]
    assert plain[2].endswith("██  1.00") and "東京" in plain[2]
    assert "█" not in plain[3] and plain[3].endswith("0.50")
    assert plain[1].index("5") == plain[3].index("░") + 10
    small = io.StringIO()
    monkeypatch.setattr(console, "_console", lambda: Console(file=small, width=60))
    console.heat_map("title", ("a",), [[3.1e-5, 1e-6]], 0.0, 1.0, probability)
    assert small.getvalue().endswith("  3.1e-05\n")
    assert "48;2;255;196;84" in shown(60, "truecolor")
    assert shown(34, None).splitlines()[2].endswith(" █  1.00")
