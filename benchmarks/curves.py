"""Time and room of a write against the number of edits and against d_in, drawn.

Solves of one weight (MEMIT, d_out = 768) whose second moment was taken apart before, and the bytes
that its patch holds; plain is the dense form. Writes benchmarks/results/curves.{json,png}.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from errata.methods import Memit
from errata.patches.update import Update
from measure import cpu_seconds
from solve import dense, keys_for, made_up

EDITS, WIDTH, OUT = (1, 10, 100, 1000, 3000, 10_000), 3072, 768
WIDTHS = (384, 768, 1536, 3072)
RESULTS = Path(__file__).parent / "results"


def point(d: int, n: int) -> dict[str, float]:
    """Return seconds of ours and of the dense form, and the bytes that a patch holds."""
    method, moment = Memit(), made_up(d)
    keys = keys_for(moment, n)
    method.read(keys[:, :1].double(), keys[:, :1].double(), moment, None)
    work = partial(method.read, keys.double(), keys.double(), moment, None)
    taken = [cpu_seconds(work) for _ in range(3 if n <= 100 else 1)]
    plain_seconds, _ = cpu_seconds(partial(dense, method, moment, keys, []))
    update = Update.of(torch.ones(OUT, n), taken[-1][1], keys)
    return {
        "d": d,
        "n": n,
        "seconds": statistics.median(seconds for seconds, _ in taken),
        "plain_seconds": plain_seconds,
        "patch_bytes": sum(tensor.nbytes for tensor in update.tensors().values()),
        "dense_bytes": 4 * d * (OUT + d),
    }


def draw(found: dict[str, list[dict[str, float]]]) -> None:
    """Draw the curves as curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, key, label in zip(
        axes, ("edits", "edits", "widths"), ("number of edits", "number of edits", "d_in"),
        strict=True,
    ):  # fmt: skip
        points = found[key]
        x = [each["n" if key == "edits" else "d"] for each in points]
        names: tuple[tuple[str, str], ...] = (("seconds", "errata"), ("plain_seconds", "dense"))
        if axis is axes[1]:
            names = (("patch_bytes", "patch"), ("dense_bytes", "Δ and K Kᵀ, dense"))
        scale = 2**20 if axis is axes[1] else 1
        for (name, title), mark in zip(names, ("o-", "s--"), strict=True):
            axis.plot(x, [each[name] / scale for each in points], mark, label=title)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_ylabel("MiB of one weight's patch" if axis is axes[1] else "CPU seconds a solve")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend()
    axes[0].set_title(f"time, d_in = {WIDTH:,}")
    axes[1].set_title(f"room, d_in = {WIDTH:,}, d_out = {OUT}")
    axes[2].set_title("time, 100 edits")
    axes[2].set_xticks(WIDTHS, [f"{d:,}" for d in WIDTHS])
    axes[2].minorticks_off()
    figure.savefig(RESULTS / "curves.png", dpi=110)


def main() -> None:
    """Measure, write, draw."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "edits": [point(WIDTH, n) for n in EDITS],
        "widths": [point(d, 100) for d in WIDTHS],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    main()
