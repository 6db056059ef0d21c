"""`errata eval`: what a model says about the cases of a dataset, without and with patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import console
from errata.cli.options import (
    Adapter,
    AdapterKind,
    AllowBase,
    Device,
    Dtype,
    Json,
    Model,
    command_line,
    load_dataset,
    load_model,
)
from errata.core.errors import ErrataError
from errata.core.settings import LARGEST_SEED
from errata.core.text import counted

if TYPE_CHECKING:
    from errata.data.datasets import Loaded
    from errata.experiments.eval_run import Evaluation


def evaluate(
    model: Model,
    patch: Annotated[
        list[Path] | None,
        typer.Option("--patch", help="A patch to evaluate; several are put on in order."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A dataset's name (`errata ls datasets`) or a file; `demo` for the demo.",
            metavar="NAME|FILE",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many cases.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the first cases.")] = 0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=LARGEST_SEED, help="Shuffle the cases first; the texts' seed, too."
        ),
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out broken records, and count them.")
    ] = False,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate", help="Also let the model write: answers, and texts about the subjects."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest written answer, in tokens; 32 when not given."),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            help="Reference texts for CounterFact (attribute_snippets.json), or `published`: "
            "fetch them, 926 MB.",
            metavar="FILE",
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Keep a run here, with every answer.", metavar="DIR")
    ] = None,
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
) -> None:
    """Score a model on a dataset; with patches, before and after side by side."""
    from errata.experiments.eval_run import evaluate_model, run_evaluation
    from errata.metrics.base import EvalSettings

    name = dataset or ("demo" if model == "demo" else None)
    if name is None:
        raise ErrataError("say what to ask", "name a dataset: --dataset counterfact")
    if not generate:
        _refuse_unwritten({"--references": references, "--max-new-tokens": max_new_tokens})
    loaded = load_dataset(name, limit, offset, seed, skip_invalid, references)
    if generate:
        _say_what_is_missing(loaded)
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    asking = EvalSettings(generate=generate, seed=seed or 0)
    if max_new_tokens is not None:
        asking = asking.with_values(max_new_tokens=max_new_tokens)
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
    if json:
        console.as_json(
            {
                "model": model,
                "patches": [str(path) for path in patch or ()],
                "dataset": source,
                "cases": len(loaded.cases),
                "run": None if folder is None else str(folder),
                "summary": found.as_json(),
            }
        )
    else:
        _show(model, name, loaded, found, folder)


def _refuse_unwritten(given: dict[str, Any]) -> None:
    """Raise `ErrataError` for options about what the model writes, where it writes nothing."""
    for name, value in given.items():
        if value is not None:
            raise ErrataError(
                f"{name} is about what the model writes, and it writes nothing here",
                "add --generate, or leave it out",
            )


def _say_what_is_missing(loaded: Loaded) -> None:
    from errata.metrics.text_quality import missing_extras

    if missing := missing_extras():
        console.warning(
            f"texts are not scored without {' and '.join(missing)}: pip install 'errata-lm[eval]'"
        )
    if not any(case.generation_prompts for case in loaded.cases):
        console.warning("this dataset has no prompts for texts; only answers are written")


def _show(model: str, dataset: str, loaded: Loaded, found: Evaluation, folder: Path | None) -> None:
    console.verb(f"errata eval {model}")
    named = dataset if dataset == str(loaded.path) else f"{dataset}, {loaded.path}"
    console.fact(f"{counted(len(loaded.cases), 'case')} of {named}")
    if loaded.skipped:
        console.fact(f"left out {counted(len(loaded.skipped), 'broken record')}")
    console.fact("means over cases with 95 % intervals; n is the number of prompts")
    for title, (columns, rows) in found.tables().items():
        console.table((f"{title}", *columns[1:]), rows)
    if folder is not None:
        console.fact(f"kept {folder}")
        console.next_step(f"less {folder / 'report.md'}", f"errata summarize {folder.parent}")
