"""The results of a matrix as tables: sections of `report.md`, and CSV files for further analysis.

configurations.csv  one line per configuration and figure
edits.csv           one line per configuration and edit: P(new) before and after, its class
tests.csv           one line per pair of configurations
displacement.csv    one line per configuration and block
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from errata.core.files import write_text
from errata.experiments.survival.summary import STATES, Configuration
from errata.metrics.scores import Score
from errata.reports.tables import markdown_table

NAMES = {"base": "base", "tuned": "tuned", "edited": "edited", "edited_tuned": "edited, tuned"}
SIGNIFICANT = 0.05


def write_tables(
    folder: Path,
    configurations: Sequence[Configuration],
    tests: Sequence[dict[str, Any]],
) -> None:
    """Write the CSV files of a run; `tests` are those of `summary.comparisons`."""
    _csv(folder / "configurations.csv", _figure_rows(configurations))
    _csv(folder / "edits.csv", _edit_rows(configurations))
    _csv(folder / "displacement.csv", _block_rows(configurations))
    if tests:
        _csv(folder / "tests.csv", tests)


def _csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, text.getvalue())


def _key(each: Configuration) -> dict[str, Any]:
    return {"method": each.method, "edits": each.edits, "tuning": each.tuning}


def _figure_rows(configurations: Sequence[Configuration]) -> Iterable[dict[str, Any]]:
    for each in configurations:
        for name, score in each.figures.items():
            yield {**_key(each), "seeds": len(each.seeds), "figure": name, **score.model_dump()}


def _edit_rows(configurations: Sequence[Configuration]) -> Iterable[dict[str, Any]]:
    for each in configurations:
        states = {state: each.probabilities(state) for state in STATES}
        for i, classes in enumerate(each.classes()):
            for seed, name in zip(each.seeds, classes, strict=True):
                columns = {f"p_new_{state}": values[i] for state, values in states.items()}
                yield {**_key(each), "edit": i, "seed": seed, "class": name, **columns}


def _block_rows(configurations: Sequence[Configuration]) -> Iterable[dict[str, Any]]:
    for each in configurations:
        found = each.displaced()
        for block in range(len(found["edit"])):
            row = {**_key(each), "block": block}
            for name, scores in found.items():
                score = scores[block]
                row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
            yield row


def _cell(score: Score | None) -> str:
    """Return a score as shown in tables."""
    return "-" if score is None else score.short()


def _survival_table(configurations: Sequence[Configuration]) -> str:
    columns = (
        *("stable", "erased", "emergent", "impossible", "flip_rate", "decay"),
        *("paraphrase_decay", "neighbourhood_decay"),
    )
    rows = [
        [each.method, str(each.edits), each.tuning, *(_cell(each.figures.get(c)) for c in columns)]
        for each in configurations
    ]
    heads = (c.replace("_", " ") for c in columns)
    return markdown_table(("method", "edits", "tuning", *heads), rows)


def _models_table(configurations: Sequence[Configuration], figure: str) -> str:
    rows = [
        [
            *(each.method, str(each.edits), each.tuning),
            *(_cell(each.figures.get(f"{figure}_{state}")) for state in STATES),
        ]
        for each in configurations
        if f"{figure}_base" in each.figures
    ]
    return markdown_table(("method", "edits", "tuning", *NAMES.values()), rows)


def _tests_table(tests: Sequence[dict[str, Any]]) -> str:
    shown = sorted((test for test in tests if test["p_holm"] < SIGNIFICANT), key=_by_p)
    rows = [
        [
            *(str(test["edits"]), test["one"], test["other"]),
            f"{100 * test['difference']:+z.1f}",
            *(f"{test['p']:.2g}", f"{test['p_holm']:.2g}"),
        ]
        for test in shown
    ]
    columns = ("edits", "one", "other", "difference, points", "p", "p (Holm)")
    return markdown_table(columns, rows)


def _by_p(test: dict[str, Any]) -> tuple[int, float]:
    return test["edits"], test["p_holm"]


def sections(
    configurations: Sequence[Configuration],
    tests: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
    seeds: Sequence[int],
) -> list[str]:
    """Return the sections of the report, in Markdown."""
    first = configurations[0].figures
    parts = [
        "Values in % with 95 % intervals, except perplexities. An edit works if the new target is "
        "likelier than the true one. Stable: it works before and after tuning; Erased: only "
        "before; Emergent: only after; Impossible: never. Flip rate: the share of working edits "
        "that tuning erases. Decay: the relative loss of success. Intervals: Wilson for shares, "
        f"bootstrap over edits for decays. Tuning seeds: {', '.join(map(str, seeds))}.",
        "## Outcomes of the edits",
        _survival_table(configurations),
        *[f"![{path.stem}]({path.name})" for path in pictures],
        "## The four models",
        "The base model, tuned without edits, edited without tuning, and edited then tuned.",
    ]
    titles = {
        "efficacy": "Efficacy: success on the edited prompts; base and tuned are the baselines",
        "accuracy": "Accuracy: the greedy prediction is the new target",
        "paraphrase": "Success on paraphrases",
        "neighbourhood": "Success on neighbourhood prompts",
        "unedited_known": "Control facts, never edited: the true target is likelier",
        "unedited_said": "Control facts, never edited: the greedy prediction is the true target",
        "perplexity": "Perplexity per token",
    }
    tasks = [name.removesuffix("_base") for name in first if name.startswith("task_")]
    titles |= {
        name: name.replace("_", " ").capitalize() for name in tasks if f"{name}_base" in first
    }
    for figure, title in titles.items():
        if f"{figure}_base" in first:
            parts += [f"### {title}", _models_table(configurations, figure)]
    if tests:
        names = ", ".join(sorted({test["test"] for test in tests}))
        count = sum(test["p_holm"] < SIGNIFICANT for test in tests)
        parts += [
            "## Tests between configurations",
            f"Do equally many edits work after tuning? {names}, on the same edits; p values "
            f"adjusted by Holm's method within each number of edits. {count} of {len(tests)} pairs "
            f"differ at the level {SIGNIFICANT:g}; tests.csv lists all of them.",
            *([_tests_table(tests)] if count else []),
        ]
    return parts
