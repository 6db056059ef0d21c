"""How `errata edit` shows its result, and the plan of a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.cli import console
from errata.core.cost import Cost, total

if TYPE_CHECKING:
    from errata.experiments.fact_editing import FactEdits
    from errata.patches.edited_model import EditedModel


def show_edit(found: FactEdits, loaded: str) -> None:
    """Show an edit: sources, answers and scores before and after, the patch, and next commands.

    `loaded` is how a command names the model with everything below the edit.
    """
    from errata.experiments.case_records import HALVES
    from errata.reports.tables import score_table

    run, patches = found.run, found.run.patches
    console.verb(f"errata edit {found.edited.name}, {found.method.label}")
    for line in (run.plan_words, *found.facts):
        console.fact(line)
    if found.answers:
        shown = [
            [
                row["kind"],
                row["prompt"],
                row["before"],
                row["after"],
                f"{row['p_new_before']:.3f} → {row['p_new_after']:.3f}",
            ]
            for row in found.answers
        ]
        console.table(("", "prompt", "before", "after", "P(new)"), shown)
    summary = run.summary
    if len(run.after.scores) > 1 and summary["after"]:
        console.table(*score_table(*(summary.get(half, {}) for half in HALVES)))
    if run.advice is not None:
        console.fact(f"advice: {run.advice}")
    console.fact(f"saved {patches[0]}" + (f" and {len(patches) - 1} more" if patches[1:] else ""))
    console.next_step(
        f'errata chat {loaded} --patch {patches[0]} -p "…"',
        "errata ls patches",
        f"less {run.folder / 'report.md'}",
    )


def show_plan(lines: Sequence[str], edited: EditedModel, costs: Sequence[Cost], json: bool) -> None:
    """Show a plan and its estimated costs; the last row is the total."""
    from errata.experiments.costs.editing import held_now
    from errata.models.shape import weight_bytes

    weights, rows = weight_bytes(edited.model), (*costs, total(costs))
    if json:
        plan = {"model": edited.name, "plan": list(lines), "weights": weights}
        plan |= {"process": held_now()}
        console.as_json({**plan, "costs": [cost._asdict() for cost in rows]})
        return
    console.verb(f"dry run on {edited.name}: nothing is edited or saved")
    for line in lines:
        console.fact(line)
    shown = [
        [c.what, _large(c.flops), duration(c.seconds), _size(c.memory), _size(c.disk)] for c in rows
    ]
    console.table(("", "work", "time", "memory", "disk"), shown)
    console.fact(
        f"memory is in addition to the {_size(held_now())} of this process, "
        f"of which {_size(weights)} are the model's weights"
    )
    early = any(cost.what.endswith(("search", "edits")) for cost in costs)
    console.fact(
        "times are extrapolated from a sample timed on this machine"
        + ("; requests that converge early take less" if early else "")
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


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
