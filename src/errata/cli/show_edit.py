"""How the result of an edit is shown: answers before and after, scores, what to do next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from errata.cli import console

if TYPE_CHECKING:
    from errata.experiments.costs.flops import Cost
    from errata.experiments.edit_run import Run
    from errata.methods import ClosedForm
    from errata.patches.edited_model import EditedModel


HELD_BACK = {"moment_weight": "smaller", "ridge": "smaller", "null_space_threshold": "larger"}
"""Settings that keep an edit small, and how an edit that did not take wants them changed."""


def answer_rows(
    asked: Sequence[tuple[str, str]],
    before: Sequence[str],
    after: Sequence[str],
    run: Run,
) -> list[dict[str, Any]]:
    """Rows of kind, prompt, answers before and after, and the new target's probability."""
    numbers: dict[str, tuple[float, float]] = {}
    for then, now in zip(run.before, run.after, strict=True):
        for old, new in zip(then, now, strict=True):
            numbers[old.prompt] = (math.exp(-old.new.nll), math.exp(-new.new.nll))
    return [
        {
            "kind": kind,
            "prompt": text,
            "before": old.strip(),
            "after": new.strip(),
            "p_new_before": numbers[text][0],
            "p_new_after": numbers[text][1],
        }
        for (kind, text), old, new in zip(asked, before, after, strict=True)
    ]


def shortfall(method: ClosedForm, run: Run) -> tuple[str, ...]:
    """Say how many edits did not take, and which settings hold them back."""
    took = [score.new.likeliest for each in run.after for score in each if score.kind == "efficacy"]
    if all(took):
        return ()
    values = method.model_dump()
    ways = [
        f"a {way} --{name.replace('_', '-')} (it is {values[name]:g})"
        for name, way in HELD_BACK.items()
        if name in values
    ]
    ways += ["more --steps", "other --blocks"]
    return (
        f"{took.count(False)} of {len(took)} edits did not take: another answer is still likelier; "
        f"try {', or '.join(ways)}, or another --method",
    )


def edit_json(
    edited: EditedModel, method: ClosedForm, run: Run, rows: list[dict[str, Any]], count: int
) -> None:
    """Print the one JSON object of an edit."""
    from errata.experiments.edit_run import as_json

    console.as_json(
        {
            "model": edited.name,
            "method": method.name,
            "requests": count,
            "run": str(run.folder),
            "patches": [str(path) for path in run.patches],
            "summary": as_json(run.summary),
            "answers": rows,
        }
    )


def show_edit(
    edited: EditedModel,
    method: ClosedForm,
    run: Run,
    rows: Sequence[dict[str, Any]],
    facts: Sequence[str],
    loaded: str,
) -> None:
    """Show an edit: facts, answers before and after, scores, the patch, what to do next.

    `loaded` is how a command names the model with all that is on it below the edit.
    """
    from errata.reports.tables import before_after_rows

    console.verb(f"errata edit {edited.name}, {method.label}")
    for line in facts:
        console.fact(line)
    lost = max(run.lost.values(), default=0.0)
    if lost > 0.01:
        console.warning(
            f"{100 * lost:.0f} % of the change is lost in {edited.model.dtype}; "
            "load the model in float32 (--dtype float32)"
        )
    if rows:
        shown = [
            [
                row["kind"],
                row["prompt"],
                row["before"],
                row["after"],
                f"{row['p_new_before']:.3f} → {row['p_new_after']:.3f}",
            ]
            for row in rows
        ]
        console.table(("", "prompt", "before", "after", "P(new)"), shown)
    summary = run.summary
    if len(run.after) > 1 and summary["after"]:
        console.table(
            ("figure", "before", "after"), before_after_rows(summary["before"], summary["after"])
        )
    console.fact(
        f"kept {run.patches[0]}" + (f" and {len(run.patches) - 1} more" if run.patches[1:] else "")
    )
    console.next_step(
        f'errata chat {loaded} --patch {run.patches[0]} -p "…"',
        "errata ls patches",
        f"less {run.folder / 'report.md'}",
    )


def show_plan(lines: Sequence[str], edited: EditedModel, costs: Sequence[Cost], json: bool) -> None:
    """Show what would be done and what it would cost; the sum of all stands last."""
    from errata.experiments.costs.editing import held_now
    from errata.experiments.costs.flops import total
    from errata.models.shape import weight_bytes

    weights, rows = weight_bytes(edited.model), (*costs, total(costs))
    if json:
        told = {"model": edited.name, "plan": list(lines), "weights": weights}
        told |= {"process": held_now()}
        console.as_json({**told, "costs": [cost._asdict() for cost in rows]})
        return
    console.verb(f"a dry run on {edited.name}: nothing is edited, nothing kept")
    for line in lines:
        console.fact(line)
    shown = [
        [c.what, _large(c.flops), _duration(c.seconds), _size(c.memory), _size(c.disk)]
        for c in rows
    ]
    console.table(("", "work", "time", "memory", "disk"), shown)
    console.fact(
        f"memory is besides the {_size(held_now())} that this process holds, "
        f"{_size(weights)} of it the model's weights"
    )
    early = any(cost.what.endswith(("search", "edits")) for cost in costs)
    console.fact(
        "times are scaled from a part that was measured here"
        + (", and requests that reach their goal early take less" if early else "")
    )


def _large(number: float) -> str:
    for power, unit in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= power:
            return f"{number / power:.3g} {unit}"
    return f"{number / 1e6:.3g} MFLOP" if number else "-"


def _size(number: float) -> str:
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= power:
            return f"{number / power:.3g} {unit}"
    return f"{number:.0f} B" if number else "-"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
