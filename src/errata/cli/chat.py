"""`errata chat`: ask a model, without and with patches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from errata import console
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


def chat(
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to continue; may be repeated.")
    ] = None,
    patch: Annotated[
        list[Path] | None,
        typer.Option("--patch", help="A patch; may be repeated, the first goes on first."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
) -> None:
    """Continue prompts, greedily; with patches, before and after side by side.

    Without -p, prompts are read from standard input, one a line.
    """
    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    rows = []
    if not json:
        console.verb(f"errata chat {model}")
    for text in prompt or _typed():
        after = edited.generate(text, max_new_tokens)
        if not edited.patches:
            rows.append({"prompt": text, "answer": after})
        else:
            with edited.without_patches():
                before = edited.generate(text, max_new_tokens)
            rows.append({"prompt": text, "before": before, "after": after})
        if not json and prompt is None:
            console.text("\n".join(f"{key}: {value.strip()}" for key, value in rows[-1].items()))
    if json:
        console.as_json(
            {"model": model, "patches": [str(path) for path in patch or ()], "answers": rows}
        )
    elif prompt is not None:
        console.table(list(rows[0]), [[value.strip() for value in row.values()] for row in rows])


def _typed() -> Iterable[str]:
    return (line.strip() for line in sys.stdin if line.strip())
