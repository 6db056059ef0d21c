"""How traces are shown and kept from the command line: heat maps, tables, recommended blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from errata.cli import console
from errata.core.errors import ErrataError
from errata.core.files import write_text
from errata.core.text import counted

if TYPE_CHECKING:
    from errata.experiments.trace_run import TraceRun
    from errata.tracing.averages import Recommendation
    from errata.tracing.trace import Trace

LEFT_OUT_SHOWN = 5


def picture_formats(given: str | None) -> tuple[str, ...]:
    """Return the formats of pictures to keep; PNG where nothing is said and matplotlib is there.

    Raises `ErrataError` for an unknown format, or when pictures are asked for without the extra.
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
            f"there are no pictures of the kind {', '.join(unknown)}",
            f"choose of {', '.join(known)}, or none",
        )
    if not find_spec("matplotlib"):
        raise ErrataError(
            "pictures need an extra that is not installed", "pip install 'errata-lm[plot]'"
        )
    return asked


def keep_recommendation(folder: Path, blocks: Recommendation) -> None:
    """Write the evidence, and a settings file per method that `errata edit --hparams` reads."""
    from errata.methods import METHODS

    text = json.dumps(blocks.as_json(), indent=1)
    write_text(folder / "recommended" / "evidence.json", text + "\n")
    for name, method in METHODS.items():
        chosen = blocks_for(method.batch_limit == 1, blocks)
        write_text(folder / "recommended" / f"{name}.json", json.dumps({"layers": chosen}) + "\n")


def blocks_for(single: bool, blocks: Recommendation) -> list[int]:
    """Return the peak for methods that edit one block, the blocks around it for others."""
    return [blocks.peak] if single else list(blocks.blocks)


def show_trace(
    model: str,
    found: Trace,
    said: tuple[str, str],
    folder: Path,
    blocks: Recommendation | None,
    before: bool,
    nothing_lost: bool,
) -> None:
    """Show one fact's trace: a heat map per kind, and where most comes back.

    `said` are words on the noise, and the dataset that could be traced next; `before` tells that
    the trace was made by an earlier call, `nothing_lost` that nothing could come back.
    """
    from errata.core.text import probability
    from errata.reports.figures import can_plot, readable
    from errata.reports.trace_figures import titled

    low = float(found.low.mean())
    console.verb(f"errata trace {model}")
    _say_finished(folder, before)
    console.fact(f"{found.text} → {found.answer}")
    clean, corrupted = probability(found.high, 3), probability(low, 3)
    console.fact(f"P(answer): {clean} clean, {corrupted} corrupted ({len(found.low)} runs)")
    console.fact(said[0])
    _say_window(found.window, found.blocks)
    first, end = found.subject
    labels = [
        readable(found.tokens[place]) + ("*" if first <= place < end else "")
        for place in found.places
    ]
    for kind in found.kinds:
        values = found.mean(kind)
        top = max(float(values.max()), low + 1e-3)
        title = f"{titled(kind, found.window)} ({probability(low)} to {probability(top)})"
        console.heat_map(title, labels, values.tolist(), low, top, probability)
        if nothing_lost:
            continue
        place, block = divmod(int(values.argmax()), found.blocks)
        lows, highs = found.interval(kind)
        most, *ends = (probability(float(x[place, block])) for x in (values, lows, highs))
        at = f"block {block}, token {labels[place]!r}"
        interval = f" [{', '.join(ends)}]" if len(found.low) > 1 else ""
        console.fact(f"most comes back at {at}: {most}{interval}")
    if not can_plot():
        console.fact("no pictures: pip install 'errata-lm[plot]'")
    console.fact(f"kept {folder}")
    _show_recommended(model, folder, blocks)
    if blocks is None:
        console.next_step(f"errata trace {model} --dataset {said[1]} --limit 200 --recommend")


def show_averages(
    model: str, dataset: str, run: TraceRun, noise: str, blocks: Recommendation | None
) -> None:
    """Show average effects: a heat map and a table per kind, and what was left out."""
    from errata.experiments.trace_run import largest
    from errata.reports.figures import can_plot
    from errata.reports.trace_figures import titled
    from errata.tracing.averages import ROLES

    averages, window = run.averages, run.traces[0].window
    console.verb(f"errata trace {model}")
    _say_finished(run.folder, run.before)
    console.fact(f"{counted(len(run.traces), 'fact')} of {dataset}, {len(run.left_out)} left out")
    for reason in run.left_out[:LEFT_OUT_SHOWN]:
        console.fact(f"left out: {reason}")
    console.fact(f"P(answer): {averages.high}; corrupted: {averages.low}")
    console.fact(noise)
    _say_window(window, averages.blocks)
    for kind, roles in averages.effects.items():
        held = [role for role in ROLES if role in roles]
        values = [[score.value for score in roles[role]] for role in held]
        top = max(max(map(max, values)), 1e-3)
        title = f"{titled(kind, window)}: average indirect effect (0 to {top:.2f})"
        console.heat_map(title, held, values, 0.0, top)
        rows = []
        for role in held:
            best = largest(roles[role])
            rows.append([role, str(roles[role].index(best)), str(best)])
        console.table(("token", "block", "largest effect"), rows)
    if not can_plot():
        console.fact("no pictures: pip install 'errata-lm[plot]'")
    console.fact(f"kept {run.folder}")
    _show_recommended(model, run.folder, blocks)
    if blocks is None:
        console.next_step(f"less {run.folder / 'report.md'}")


def _say_finished(folder: Path, before: bool) -> None:
    if before:
        console.fact(f"finished before, in {folder}; --again does it once more")


def _say_window(window: int, blocks: int) -> None:
    console.fact(
        f"MLP and attention are restored in {window} blocks at a time; this model has {blocks} "
        "(the paper: 10 of 48; --window)"
    )


def _show_recommended(model: str, folder: Path, blocks: Recommendation | None) -> None:
    if blocks is None:
        return
    console.fact(f"blocks to edit, by the trace: {_list(blocks.blocks)}; for ROME {blocks.peak}")
    console.fact(blocks.evidence)
    if blocks.facts < 2:
        console.warning("one fact is no evidence for others; trace a dataset: --dataset NAME")
    console.warning(
        "where tracing finds a fact and where editing works best can differ (arXiv 2301.04213); "
        "a sweep of edits tells directly"
    )
    kept = folder / "recommended"
    console.next_step(
        f'errata edit {model} "…" TARGET --method memit --blocks {_list(blocks.blocks)}',
        f'errata edit {model} "…" TARGET --method rome --hparams {kept / "rome.json"}',
        f"errata sweep-blocks {model} --dataset NAME --limit 50",
    )


def _list(blocks: tuple[int, ...]) -> str:
    return ",".join(str(block) for block in blocks)
