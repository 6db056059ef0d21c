"""`errata survival`: whether edits survive fine-tuning, by method, number, tuning and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import command_line, given_corpus
from errata.cli.show_edit import show_plan
from errata.core.errors import ErrataError
from errata.core.files import check_results
from errata.core.places import datasets_folder, moments_folder
from errata.experiments.edit_plan import matrix_words
from errata.experiments.recipe.yaml_text import change_value
from errata.experiments.survival.settings import Matrix, defaults_for
from errata.methods import METHODS

SHOWN = ("stable", "erased", "emergent", "impossible", "flip_rate", "decay")


@on_model("patch", "allow_base")
def survival(
    on: OnModel,
    *,
    methods: Annotated[
        str, typer.Option(help=f"Editing methods: {', '.join(METHODS)}.", metavar="LIST")
    ] = "memit",
    edits: Annotated[
        str, typer.Option(help="Numbers of edits, each made in one batch.", metavar="LIST")
    ] = "100",
    tunings: Annotated[
        str,
        typer.Option(
            help="Tunings: lora, dora or full, then the blocks to tune (@edited, @others or "
            "@3.4.5), then guards (+penalty, +project, +reapply). edited-only and "
            "all-but-edited stand for lora@edited and lora@others.",
            metavar="LIST",
        ),
    ] = "lora,dora,full",
    seeds: Annotated[str, typer.Option(help="Seeds of the tunings.", metavar="LIST")] = "0",
    dataset: Annotated[
        str | None, typer.Option(help="Cases to edit: a dataset's name or a file.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Rows to fine-tune on: .json, .jsonl, or hf:DATASET.", metavar="FILE"),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="Number of control cases, which are never edited.")
    ] = 100,
    hold_out: Annotated[
        int | None, typer.Option(min=0, help="Number of rows to hold out and score as a task.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Benchmark tasks to score as well (see `errata tasks`).", metavar="LIST"),
    ] = None,
    task_data: Annotated[
        Path, typer.Option(help="The folder that holds <task>/test.json.", metavar="DIR")
    ] = Path("dataset"),
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of rows per task.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of an answer to a task, in tokens.")
    ] = 32,
    text: Annotated[
        str | None, typer.Option(help="Text for perplexity: `wikitext2` or a file.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset of the tunings to start from: study, demo.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of all tunings (epochs=2), of one (full.learning_rate=1e-4), or of a "
            "method (memit.moment_weight=10); may be repeated.",
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Corpus for the second moments (see `errata stats`).")
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="A folder with local copies of Hub datasets.", metavar="DIR")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Repeat a finished matrix.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan and its estimated cost.")
    ] = False,
) -> None:
    """Edit, fine-tune and score again: which edits survive, and what else the tuning loses.

    Every configuration is compared with the unedited model, with the same tuning of the unedited
    model, and with facts that were never edited. Interrupted runs resume; finished ones are shown
    again.

    Example: errata survival demo --methods rome,memit,alphaedit --edits 10,100
    """
    tune, settings = _changes(changes or ())
    given = {
        "methods": _listed(methods),
        "edits": _listed(edits),
        "tunings": _listed(tunings),
        "seeds": _listed(seeds),
        "dataset": dataset,
        "controls": controls,
        "data": data,
        "hold_out": hold_out,
        "tasks": _listed(tasks) if tasks else (),
        "task_data": str(task_data),
        "task_limit": task_limit,
        "max_new_tokens": max_new_tokens,
        "text": text,
        "preset": preset,
        "tune": tune,
        "settings": settings,
        "corpus": corpus,
    }
    given = {
        **defaults_for(on.model),
        **{name: value for name, value in given.items() if value is not None},
    }
    if "data" not in given:
        raise ErrataError("no rows to fine-tune on are named", "name them: --data FILE")
    if "dataset" not in given:
        raise ErrataError("no dataset is named", "name one: --dataset counterfact")
    matrix = Matrix.checked(given)
    given_corpus(matrix.corpus)
    if not dry_run:
        check_results(on.results)
    _run(on, matrix, mirror, again, dry_run)


def _run(on: OnModel, matrix: Matrix, mirror: Path | None, again: bool, dry_run: bool) -> None:
    from errata.experiments.survival.questions import read_questions
    from errata.experiments.survival.run import finished_survival, run_survival
    from errata.statistics.store import Store

    questions, rows = read_questions(matrix, datasets_folder(), mirror)
    edited, store = on.load(to_edit=True), Store(moments_folder())
    if dry_run:
        from errata.experiments.costs.tuning import matrix_costs

        lines = [matrix_words(matrix.edits)]
        lines += [
            f"{name}: {', '.join(map(str, getattr(matrix, name)))}"
            for name in ("methods", "edits", "tunings", "seeds")
        ]
        show_plan(lines, edited, matrix_costs(edited, matrix, questions, rows, store), on.json)
        return
    found = None if again else finished_survival(matrix, edited, questions, rows, on.results)
    with console.bar("configurations") as progress:
        summary, folder = found or run_survival(
            matrix,
            on.load,
            questions,
            rows,
            on.results,
            store=store,
            command=command_line(),
            progress=progress,
        )
    if on.json:
        console.as_json({"model": on.model, "run": str(folder), **summary})
        return
    _show(on.model, matrix, summary, folder, found is not None)


def _show(model: str, matrix: Matrix, summary: dict[str, Any], folder: Path, before: bool) -> None:
    from errata.metrics.scores import Score

    console.verb(f"errata survival {model}")
    console.fact(matrix_words(matrix.edits))
    if before:
        console.fact(f"finished before, in {folder}; --again repeats it")
    console.fact(f"{matrix.data}; seeds {', '.join(map(str, matrix.seeds))}")
    console.fact("percentages of the edits with 95 % intervals")
    rows = []
    for cell in summary["configurations"]:
        scores = [Score(**cell[name]) if name in cell else None for name in SHOWN]
        shown = ["-" if score is None else score.short() for score in scores]
        rows.append([cell["method"], str(cell["edits"]), cell["tuning"], *shown])
    heads = (name.replace("_", " ") for name in SHOWN)
    console.table(("method", "edits", "tuning", *heads), rows)
    console.fact(f"saved {folder}")
    console.next_step(f"less {folder / 'report.md'}")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _changes(changes: list[str] | tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split --set into settings of the tunings and of the editing methods."""
    tune: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for change in changes:
        first = change.partition("=")[0].strip().split(".")[0]
        change_value(settings if first in METHODS else tune, change, "epochs=2")
    return tune, settings
