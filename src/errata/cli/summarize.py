"""`errata summarize`: the scores of saved runs, ours and those of the reference repositories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.options import Json
from errata.core.text import counted

if TYPE_CHECKING:
    from errata.experiments.case_records import RunRecord
    from errata.metrics.scores import Score


def summarize(
    folder: Annotated[
        Path,
        typer.Argument(help="A run, or a folder that contains runs at any depth.", metavar="DIR"),
    ],
    *,
    first: Annotated[
        int | None, typer.Option(min=1, help="Only cases with ids below this number.")
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Show means and standard deviations times 100, as the references print them.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Summarise runs of `errata`, or folders of the references' *_edits-case_*.json files."""
    from errata.experiments.results import read_runs
    from errata.experiments.run_folder import unfinished_runs

    runs, unfinished = read_runs(folder), unfinished_runs(folder)
    if first is not None:
        runs = [run.first(first) for run in runs]
    for run in runs:
        for name in run.unreadable:
            console.warning(f"{run.name}: {name} cannot be read and is skipped")
    for hint in unfinished.values():
        console.warning(hint)
    if json:
        records = [_as_json(run) for run in runs]
        console.as_json({"runs": records, "unfinished": [str(path) for path in unfinished]})
        return
    console.verb(f"errata summarize {folder}")
    if published:
        _show_published(runs)
    elif len(runs) == 1:
        _show_one(runs[0])
    else:
        _show_many(runs)


def _as_json(run: RunRecord) -> dict[str, Any]:
    from errata.experiments.case_records import HALVES
    from errata.experiments.published_results import published_summary
    from errata.metrics.scores import before_after_json

    before, after, in_prompt = map(run.summary, HALVES)
    return {
        "run": str(run.folder),
        "cases": len(run.cases),
        "plan": run.plan,
        "advice": run.advice,
        "unreadable": list(run.unreadable),
        "summary": before_after_json(before or None, after, in_prompt or None),
        "published": {
            name: [None if math.isnan(x) else x for x in pair]
            for name, pair in published_summary(run).items()
        },
    }


def _title(run: RunRecord) -> str:
    cases = f"{run.name}: {counted(len(run.cases), 'case')}"
    return f"{cases}; {run.plan}" if run.plan else cases


def _show_one(run: RunRecord) -> None:
    from errata.experiments.case_records import HALVES
    from errata.reports.tables import score_table

    console.fact(_title(run))
    console.fact("means over cases with 95 % intervals; n is the number of prompts")
    console.table(*score_table(*map(run.summary, HALVES)))
    _show_advice(run)


def _show_advice(run: RunRecord) -> None:
    if run.advice is not None:
        console.fact(f"{run.name}, advice: {run.advice}")


def _show_many(runs: list[RunRecord]) -> None:
    from errata.metrics.registry import comparison_tables

    summaries = [run.summary("after") for run in runs]
    for plan in dict.fromkeys(run.plan for run in runs if run.plan):
        console.fact(f"{', '.join(run.name for run in runs if run.plan == plan)}: {plan}")
    console.fact("after editing; means over cases with 95 % intervals, shares in %")
    for title, columns in comparison_tables().items():
        rows = [
            [run.name, str(len(run.cases)), *(_cell(summary, name) for name in columns)]
            for run, summary in zip(runs, summaries, strict=True)
            if any(name in summary for name in columns)
        ]
        if rows:
            heads = [name.removesuffix("_tokens").removesuffix("_generated") for name in columns]
            console.fact(title)
            console.table(("run", "cases", *heads), rows)
    for run in runs:
        _show_advice(run)


def _cell(summary: Mapping[str, Score], name: str) -> str:
    return summary[name].short() if name in summary else "-"


def _show_published(runs: list[RunRecord]) -> None:
    from errata.experiments.published_results import published_summary

    for run in runs:
        console.fact(_title(run))
        rows = [
            [name, f"{pair[0]:z.2f}", "" if math.isnan(pair[1]) else f"{pair[1]:.2f}"]
            for name, pair in published_summary(run).items()
        ]
        console.table(("figure", "mean", "standard deviation"), rows)
