"""The loss of a tuning as numbers and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from errata.core.files import replacing, write_text
from errata.tuning.train import TuningResult

SMOOTHED = 0.05
"""The line runs over the mean of this share of all steps."""


def mean_label(steps: int) -> str:
    """Name the line of means over so many steps."""
    return f"mean of {steps} step{'s' * (steps != 1)}"


def write_curve(tuned: TuningResult, folder: Path) -> list[Path]:
    """Write `loss.json` and, where Matplotlib is installed, `loss.png`; return what was written."""
    numbers = folder / "loss.json"
    write_text(
        numbers,
        json.dumps({"train": tuned.losses, "validation": tuned.validation}, indent=1) + "\n",
    )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return [numbers]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    steps, losses = zip(*tuned.losses, strict=True)
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="each step")
    width = max(1, round(SMOOTHED * len(losses)))
    means = [sum(losses[max(0, i - width + 1) : i + 1]) / min(width, i + 1)
             for i in range(len(losses))]  # fmt: skip
    axes.plot(steps, means, color="#1f4e79", linewidth=1.6, label=mean_label(width))
    if tuned.validation:
        at, aside = zip(*tuned.validation, strict=True)
        axes.plot(at, aside, "o-", color="#c0504d", markersize=3, label="rows set aside")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per learnt token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    picture = folder / "loss.png"
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return [numbers, picture]
