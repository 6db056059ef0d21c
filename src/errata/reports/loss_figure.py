"""The loss curve of fine-tuning: `loss.json` and `loss.png`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from errata.core.files import write_text
from errata.reports.figures import blank_figure, can_plot, save_figure
from errata.tuning.train import TuningResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 0.05
"""Length of the moving average, as a share of all steps."""


def mean_label(steps: int) -> str:
    """Return the legend of the moving average over `steps` steps."""
    return f"mean of {steps} step{'s' * (steps != 1)}"


def write_curve(tuned: TuningResult, folder: Path) -> list[Path]:
    """Write `loss.json` and, if matplotlib is installed, `loss.png`; return the paths."""
    numbers, picture = folder / "loss.json", folder / "loss.png"
    losses = {"train": tuned.losses, "validation": tuned.validation}
    write_text(numbers, json.dumps(losses, indent=1) + "\n")
    if not can_plot():
        return [numbers]
    save_figure(draw_losses(tuned), picture, dpi=120)
    return [numbers, picture]


def draw_losses(tuned: TuningResult) -> Figure:
    """Return a figure of training loss by step, its moving average, and validation loss."""
    figure = blank_figure(6.4, 3.6)
    axes = figure.add_subplot()
    steps, losses = zip(*tuned.losses, strict=True)
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="each step")
    width = max(1, round(SMOOTHED * len(losses)))
    means = [sum(losses[max(0, i - width + 1) : i + 1]) / min(width, i + 1)
             for i in range(len(losses))]  # fmt: skip
    axes.plot(steps, means, color="#1f4e79", linewidth=1.6, label=mean_label(width))
    if tuned.validation:
        at, held_out = zip(*tuned.validation, strict=True)
        axes.plot(at, held_out, "o-", color="#c0504d", markersize=3, label="rows set aside")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per learnt token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
