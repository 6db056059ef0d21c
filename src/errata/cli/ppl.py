"""`errata ppl`: perplexity on WikiText-2 or any text, without and with patches."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

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
    load_model,
)


def ppl(
    model: Model,
    text: Annotated[
        str,
        typer.Option(
            help="`wikitext2` (raw, its test articles), `demo`, or a text file.",
            metavar="NAME|FILE",
        ),
    ] = "wikitext2",
    patch: Annotated[
        list[Path] | None,
        typer.Option("--patch", help="A patch; several are put on in order."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens seen at once; as many as the model reads, 2048 at most."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens per window; all of them when not given."),
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(help="A folder with copies of Hub datasets.", metavar="DIR"),
    ] = None,
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
) -> None:
    """Measure perplexity per token, word and byte; with patches, before and after.

    Every token is predicted once and padding never counts. With the default stride, word
    perplexity on `wikitext2` is that of lm-eval's task `wikitext`.

    Example: errata ppl demo --text notes.txt --window 128 --stride 64
    """
    from errata.data.passages import read_passages
    from errata.metrics.perplexity import read_texts

    passages = read_passages(text, mirror)
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    found, cut = {}, None
    for label in ("before", "after") if edited.patches else ("value",):
        as_it_is = edited.without_patches() if label == "before" else nullcontext()
        with as_it_is, console.bar(f"reading, {label}") as progress:
            read = read_texts(
                edited,
                passages,
                window=window,
                stride=stride,
                progress=progress,
            )
        found[label], cut = read.figures(), read.cut
    assert cut is not None
    last = found["after" if edited.patches else "value"]
    if json:
        plain = {
            label: {n: s.model_dump() for n, s in some.items()} for label, some in found.items()
        }
        summary = plain.pop("after" if edited.patches else "value")
        console.as_json(
            {
                "model": model,
                "patches": [str(path) for path in patch or ()],
                "text": text,
                "passages": len(passages),
                **cut._asdict(),
                "summary": {**summary, **plain},
            }
        )
        return
    console.verb(f"errata ppl {model}")
    console.fact(f"{len(passages)} texts of {text}; windows of {cut.window}, stride {cut.stride}")
    console.fact("n is the number of tokens, words or bytes; 95 % intervals over windows")
    rows = [[name, *(str(some[name]) for some in found.values())] for name in last]
    console.table(("figure", *found), rows)
