"""How `errata trace` shows its result: heat maps, tables, recommended blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from errata.cli import console
from errata.core.errors import ErrataError
from errata.core.text import counted

if TYPE_CHECKING:
    from errata.experiments.fact_tracing import FactTrace, FactTraces
    from errata.tracing.averages import Recommendation

LEFT_OUT_SHOWN = 5


def picture_formats(given: str | None) -> tuple[str, ...]:
    """Return the file formats of figures; by default PNG if matplotlib is installed.

    Raises `ErrataError` for an unknown format, and for figures without matplotlib.
    """
    from importlib.util import find_spec

    known = ("png", "pdf", "svg")
    if given is None:
        return ("png",) if find_spec("matplotlib") else ()
    asked = tuple(part.strip().lower() for part in given.split(","))
    if asked == ("none",):
        return ()
    if unknown := [part for part in asked if part not in known]:
        raise ErrataError(
            f"figures cannot be saved as {', '.join(unknown)}",
            f"choose from {', '.join(known)}, or none",
        )
    if not find_spec("matplotlib"):
        raise ErrataError(
            "figures need an extra that is not installed", "pip install 'errata-lm[plot]'"
        )
    return asked


def show_trace(found: FactTrace, model: str, dataset: str) -> None:
    """Show one fact's trace: a heat map per kind, with the cell that recovers the most.

    `model` is how a command names the model with everything applied to it, `dataset` the dataset
    to suggest.
    """
    from errata.core.text import probability
    from errata.reports.figures import can_plot, readable
    from errata.reports.trace_figures import titled

    trace, blocks = found.trace, found.located.blocks
    low = float(trace.low.mean())
    console.verb(f"errata trace {model}")
    _show_finished(found.folder, found.before)
    console.fact(f"{trace.text} → {trace.answer}")
    clean, corrupted = probability(trace.high, 3), probability(low, 3)
    console.fact(f"P(answer): {clean} clean, {corrupted} corrupted ({len(trace.low)} runs)")
    console.fact(found.noise)
    _show_window(trace.window, trace.blocks)
    first, end = trace.subject
    labels = [
        readable(trace.tokens[place]) + ("*" if first <= place < end else "")
        for place in trace.places
    ]
    for kind in trace.kinds:
        values = trace.mean(kind)
        top = max(float(values.max()), low + 1e-3)
        title = f"{titled(kind, trace.window)} ({probability(low)} to {probability(top)})"
        console.heat_map(title, labels, values.tolist(), low, top, probability)
        if found.located.note is not None:
            continue
        place, block = divmod(int(values.argmax()), trace.blocks)
        lows, highs = trace.interval(kind)
        most, *ends = (probability(float(x[place, block])) for x in (values, lows, highs))
        at = f"block {block}, token {labels[place]!r}"
        interval = f" [{', '.join(ends)}]" if len(trace.low) > 1 else ""
        console.fact(f"largest recovery at {at}: {most}{interval}")
    if not can_plot():
        console.fact("no figures: pip install 'errata-lm[plot]'")
    console.fact(f"saved {found.folder}")
    _show_recommended(model, found.folder, blocks)
    if blocks is None:
        console.next_step(f"errata trace {model} --dataset {dataset} --limit 200 --recommend")


def show_averages(found: FactTraces, model: str) -> None:
    """Show average effects: a heat map and a table per kind, and the facts left out."""
    from errata.reports.figures import can_plot
    from errata.reports.trace_figures import titled
    from errata.tracing.averages import ROLES

    run, blocks = found.run, found.located.blocks
    averages, window = run.averages, run.traces[0].window
    console.verb(f"errata trace {model}")
    _show_finished(run.folder, run.before)
    facts = counted(len(run.traces), "fact")
    console.fact(f"{facts} of {found.dataset}, {len(run.left_out)} left out")
    for reason in run.left_out[:LEFT_OUT_SHOWN]:
        console.fact(f"left out: {reason}")
    console.fact(f"P(answer): {averages.high}; corrupted: {averages.low}")
    console.fact(found.noise)
    _show_window(window, averages.blocks)
    for kind, roles in averages.effects.items():
        present = [role for role in ROLES if role in roles]
        values = [[score.value for score in roles[role]] for role in present]
        top = max(max(map(max, values)), 1e-3)
        title = f"{titled(kind, window)}: average indirect effect (0 to {top:.2f})"
        console.heat_map(title, present, values, 0.0, top)
        rows = []
        for role in present:
            block, largest = max(enumerate(roles[role]), key=lambda pair: pair[1].value)
            rows.append([role, str(block), str(largest)])
        console.table(("token", "block", "largest effect"), rows)
    if not can_plot():
        console.fact("no figures: pip install 'errata-lm[plot]'")
    console.fact(f"saved {run.folder}")
    _show_recommended(model, run.folder, blocks)
    if blocks is None:
        console.next_step(f"less {run.folder / 'report.md'}")


def _show_finished(folder: Path, before: bool) -> None:
    if before:
        console.fact(f"finished before, in {folder}; --again repeats it")


def _show_window(window: int, blocks: int) -> None:
    console.fact(
        f"MLP and attention are restored in {counted(window, 'block')} at a time, of {blocks} "
        "(the paper: 10 of 48; --window)"
    )


def _show_recommended(model: str, folder: Path, blocks: Recommendation | None) -> None:
    if blocks is None:
        return
    console.fact(f"recommended blocks: {_list(blocks.blocks)}; for ROME {blocks.peak}")
    console.fact(blocks.evidence)
    if blocks.facts < 2:
        console.warning(
            "one fact is no evidence about other facts; trace a dataset: --dataset NAME"
        )
    console.warning(
        "the blocks with the largest tracing effect need not be the best to edit (arXiv "
        "2301.04213); a sweep of edits measures that directly"
    )
    hparams = folder / "recommended" / "rome.json"
    console.next_step(
        f'errata edit {model} "…" TARGET --method memit --blocks {_list(blocks.blocks)}',
        f'errata edit {model} "…" TARGET --method rome --hparams {hparams}',
        f"errata sweep-blocks {model} --dataset NAME --limit 50",
    )


def _list(blocks: tuple[int, ...]) -> str:
    return ",".join(str(block) for block in blocks)
