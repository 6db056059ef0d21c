"""`errata ppl`: perplexity on WikiText-2 or any text, without and with patches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model


@on_model("results")
def ppl(
    on: OnModel,
    text: Annotated[
        str,
        typer.Option(
            help="`wikitext2` (the raw test set), `demo`, or a text file.",
            metavar="NAME|FILE",
        ),
    ] = "wikitext2",
    window: Annotated[
        int | None,
        typer.Option(
            min=1, help="Window length in tokens (default: the model's context, at most 2048)."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens per window (default: all of them)."),
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(help="A folder with local copies of Hub datasets.", metavar="DIR"),
    ] = None,
) -> None:
    """Measure perplexity per token, word and byte; with patches, before and after.

    Every token is predicted exactly once; padding is not counted. With the default stride, word
    perplexity on `wikitext2` equals that of lm-eval's task `wikitext`. Prompt patches do not act
    on texts.

    Example: errata ppl demo --text notes.txt --window 128 --stride 64
    """
    from errata.data.passages import read_passages
    from errata.metrics.perplexity import FIGURES, check_stride, read_texts
    from errata.metrics.prompts import inactive_note

    if window is not None and stride is not None:
        check_stride(window, stride)
    passages = read_passages(text, mirror)
    edited = on.load()
    if note := inactive_note(edited, "texts"):
        console.warning(note)
    found, cut = {}, None
    for label in ("before", "after") if edited.patches else ("value",):
        state = edited.without_patches() if label == "before" else nullcontext()
        with state, console.bar(f"reading, {label}") as progress:
            read = read_texts(
                edited,
                passages,
                window=window,
                stride=stride,
                progress=progress,
            )
        found[label], cut = read.figures(), read.cut
    assert cut is not None
    if on.json:
        plain = {
            label: {n: s.model_dump() if (s := some.get(n)) else None for n in FIGURES}
            for label, some in found.items()
        }
        summary = plain.pop("after" if edited.patches else "value")
        console.as_json(
            {
                "model": on.model,
                "patches": on.patches,
                "text": text,
                "passages": len(passages),
                **cut._asdict(),
                "summary": {**summary, **plain},
            }
        )
        return
    console.verb(f"errata ppl {on.model}")
    console.fact(f"{len(passages)} texts of {text}; windows of {cut.window}, stride {cut.stride}")
    console.fact("n is the number of tokens, words or bytes; 95 % intervals over windows")
    rows = [[name, *(str(some.get(name, "n/a")) for some in found.values())] for name in FIGURES]
    console.table(("figure", *found), rows)
