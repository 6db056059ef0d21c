"""`errata eval`: score a model on the cases of a dataset, without and with patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import NoControls, Normalise, System, command_line, load_dataset
from errata.core.errors import ErrataError
from errata.core.files import check_results
from errata.core.settings import LARGEST_SEED
from errata.core.text import counted

if TYPE_CHECKING:
    from errata.data.datasets import Loaded
    from errata.experiments.eval_run import Evaluation


@on_model("results")
def evaluate(
    on: OnModel,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A dataset's name (`errata ls datasets`) or a file; `demo` for the demo.",
            metavar="NAME|FILE",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of cases.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Number of cases to skip.")] = 0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=LARGEST_SEED,
            help="Shuffle the cases with this seed; also seeds the generated texts.",
        ),
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Skip invalid records and report how many.")
    ] = False,
    normalise: Normalise = False,
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Also generate answers and texts about the subjects."),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum length of a generated answer, in tokens (default: 32)."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Ask as text (none, the default) or in a chat.", metavar="none|chat"),
    ] = None,
    system: System = None,
    no_controls: NoControls = False,
    references: Annotated[
        str | None,
        typer.Option(
            help="Reference texts for CounterFact (attribute_snippets.json), or `published` to "
            "download them (926 MB).",
            metavar="FILE",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Save the run with all answers in this folder.", metavar="DIR"),
    ] = None,
) -> None:
    """Score a model on a dataset; with patches, before and after side by side."""
    from errata.experiments.eval_run import evaluate_model, run_evaluation
    from errata.metrics.base import EvalSettings

    name = dataset or ("demo" if on.model == "demo" else None)
    if name is None:
        raise ErrataError("no dataset is named", "name one: --dataset counterfact")
    if not generate:
        _refuse_without_generation({"--references": references, "--max-new-tokens": max_new_tokens})
    form = {"template": template, "system": system, "controls": not no_controls}
    asking = EvalSettings.of({"generate": generate, "seed": seed or 0, **form})
    if max_new_tokens is not None:
        asking = asking.with_values(max_new_tokens=max_new_tokens)
    if results is not None:
        check_results(results)
    loaded = load_dataset(name, limit, offset, seed, skip_invalid, references, normalise)
    if generate:
        _warn_of_missing(loaded)
    edited = on.load()
    if template is None and edited.tokenizer.chat_template:
        console.progress_line(
            "prompts are plain text, though the tokenizer has a chat template: --template chat"
        )
    source = {"name": name, "path": str(loaded.path), "limit": limit, "offset": offset}
    source |= {"seed": seed, "skipped": len(loaded.skipped)}
    folder = None
    with console.bar("cases") as progress:
        if results is None:
            found = evaluate_model(edited, loaded.cases, asking, progress)
        else:
            found, folder = run_evaluation(
                edited, loaded.cases, asking, results, source, command_line(), progress
            )
    if on.json:
        console.as_json(
            {
                "model": on.model,
                "patches": on.patches,
                "dataset": source,
                "cases": len(loaded.cases),
                "plan": found.plan,
                "run": None if folder is None else str(folder),
                "summary": found.as_json(),
            }
        )
    else:
        _show(on.model, name, loaded, found, folder)


def _refuse_without_generation(given: dict[str, Any]) -> None:
    """Raise `ErrataError` for options about generated text if none is generated."""
    for name, value in given.items():
        if value is not None:
            raise ErrataError(
                f"{name} applies to generated text, and nothing is generated",
                "add --generate, or omit it",
            )


def _warn_of_missing(loaded: Loaded) -> None:
    """Warn of text metrics that cannot be computed here."""
    from errata.metrics.text_quality import missing_extras

    if missing := missing_extras():
        console.warning(
            f"texts are not scored without {' and '.join(missing)}: pip install 'errata-lm[eval]'"
        )
    if not any(case.generation_prompts for case in loaded.cases):
        console.warning("this dataset has no generation prompts; only answers are generated")


def _show(model: str, dataset: str, loaded: Loaded, found: Evaluation, folder: Path | None) -> None:
    console.verb(f"errata eval {model}")
    console.fact(found.plan)
    named = dataset if dataset == str(loaded.path) else f"{dataset}, {loaded.path}"
    console.fact(f"{counted(len(loaded.cases), 'case')} of {named}")
    if loaded.skipped:
        console.fact(f"skipped {counted(len(loaded.skipped), 'invalid record')}")
    console.fact("means over cases with 95 % intervals; n is the number of prompts")
    for title, (columns, rows) in found.tables().items():
        console.table((f"{title}", *columns[1:]), rows)
    if folder is not None:
        console.fact(f"saved {folder}")
        console.next_step(f"less {folder / 'report.md'}", f"errata summarize {folder.parent}")
