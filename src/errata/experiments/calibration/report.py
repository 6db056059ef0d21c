"""The report of a calibration: the front, the point that was chosen, held-out scores, a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from errata.core.text import counted
from errata.experiments.calibration.choice import Trial
from errata.experiments.calibration.settings import RULE
from errata.experiments.calibration.space import Space
from errata.experiments.run_files import write_results
from errata.reports.calibration_figure import Mark, draw_trade_off
from errata.reports.figures import can_plot, save_figure
from errata.reports.tables import markdown_table, score_table

if TYPE_CHECKING:
    from errata.experiments.calibration.run import Calibrated

FIGURE = "trade_off.png"


def write_report(found: Calibrated, space: Space, command: str | None) -> None:
    """Write the report, the summary and, with matplotlib, the figure of a calibration."""
    picture = [f"![trade-off]({FIGURE})"] if can_plot() else []
    if picture:
        save_figure(draw_trade_off(marks(found)), found.folder / FIGURE)
    names = [dial.name for dial in space.dials]
    columns, rows = front_rows(found, names)
    held_out = score_table(found.before, found.after)
    failed = sum(trial.measured is None for trial in found.trials)
    closing = f"{counted(len(found.trials), 'trial')}, {failed} without a result."
    write_results(
        found.folder,
        f"calibration of {found.preset.method} for {found.preset.model.name}, {found.folder.name}",
        [
            "\n".join(f"- {line}" for line in lines(found)),
            "## Pareto front",
            markdown_table(columns, rows),
            *picture,
            f"Chosen: trial {found.best.number}; {RULE}. {closing}",
            f"## Held-out facts, {found.preset.evidence.plan}",
            markdown_table(*held_out),
        ],
        {**found.as_json(), "dials": space.as_json()},
        command=command,
    )


def lines(found: Calibrated) -> list[str]:
    """Return the facts and the settings that were chosen, line by line."""
    shown = [f"{name} {shortly(value)}" for name, value in found.best.point.items()]
    free = [f"{name} {value:.3g}" for name, value in found.preset.scale_free.items()]
    blocks = ",".join(map(str, found.preset.settings.get("blocks") or ()))
    return [
        *found.facts.lines(),
        *([f"blocks {blocks}"] if blocks else []),
        f"settings: {', '.join(shown)}",
        *([f"at these facts: {', '.join(free)}"] if free else []),
    ]


def front_rows(found: Calibrated, names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the Pareto front, the start and the chosen point marked."""
    objectives = list(_measured(found.best).objectives())
    columns = ["trial", *names, *objectives, "mean", "KL"]
    shown = {0: "start", found.best.number: "chosen"}
    start = [found.trials[0]] if found.trials[0].measured is not None else []
    rows = []
    for trial in sorted({t.number: t for t in (*start, *found.front)}.values()):
        measured = _measured(trial)
        label = f"{trial.number} {shown.get(trial.number, '')}".strip()
        values = [f"{100 * value:.0f} %" for value in measured.objectives().values()]
        point = [shortly(trial.point.get(name)) for name in names]
        rows.append(
            [label, *point, *values, f"{100 * measured.merit:.0f} %", f"{measured.drift:.3g}"]
        )
    return columns, rows


def marks(found: Calibrated) -> list[Mark]:
    """Return the points of the figure."""
    front = {trial.number for trial in found.front}
    return [
        Mark(
            trial.measured.objectives(),
            trial.measured.merit,
            trial.measured.drift,
            trial.number in front,
            "chosen" if trial is found.best else "start" if trial.number == 0 else "",
        )
        for trial in found.trials
        if trial.measured is not None
    ]


def shortly(value: Any) -> str:
    """Return the value of a dial with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _measured(trial: Trial) -> Any:
    assert trial.measured is not None, trial
    return trial.measured
