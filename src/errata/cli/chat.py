"""`errata chat`: ask a model as it was, edited, and tuned, side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from errata.experiments.conversation import Speaker
    from errata.patches.edited_model import EditedModel


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
    conversation: Annotated[
        bool,
        typer.Option(
            "--conversation", "-c", help="Prompts are turns of one talk, each with what was said."
        ),
    ] = False,
    adapter: Adapter = None,
    adapter_kind: AdapterKind = None,
    dtype: Dtype = "auto",
    device: Device = None,
    allow_base: AllowBase = False,
    json: Json = False,
) -> None:
    """Continue prompts, greedily; with patches, before and after side by side.

    With an adapter or a run of `errata tune` that was made on an edited model: the base, the
    edited and the tuned model. Without -p, prompts are read from standard input, one a line.

    Example: errata chat demo --adapter results/tune/run_000 -p "Selma Zeller works as a"
    """
    from errata.experiments.conversation import speakers_of

    edited = load_model(model, patch, dtype, device, allow_base, adapter, adapter_kind)
    before = None
    if adapter is not None:
        before = _below(model, adapter, dtype, device, allow_base)
    speakers = speakers_of(edited, before)
    rows = []
    if not json:
        console.verb(f"errata chat {model}")
    for text in prompt or _typed():
        rows.append({"prompt": text, **_answers(speakers, text, conversation, max_new_tokens)})
        if not json and prompt is None:
            console.text("\n".join(f"{key}: {value.strip()}" for key, value in rows[-1].items()))
    if json:
        console.as_json(
            {"model": model, "patches": [str(path) for path in patch or ()], "answers": rows}
        )
    elif prompt is not None:
        console.table(list(rows[0]), [[value.strip() for value in row.values()] for row in rows])


def _below(
    model: str, adapter: str, dtype: str, device: str | None, allow_base: bool
) -> EditedModel | None:
    """Load the model that an adapter was tuned on; None where nothing tells that it was edited."""
    from errata.models.identity import same_weights
    from errata.patches.adapter import find_tuned

    tuned = find_tuned(adapter)
    below = tuned.below
    if not below:
        return None
    edited = load_model(model, None, dtype, device, allow_base)
    made_for = below[0].provenance.base
    same = allow_base or same_weights(made_for.weights, edited.base.weights)
    if tuned.checkpoint is not None and not same:
        console.warning(
            f"{adapter} was tuned on an edited {made_for.name}, and {model} is another model: it "
            "speaks alone"
        )
        return None
    for each in below:
        edited.apply(each, allow_base=allow_base)
    return edited


def _answers(
    speakers: Sequence[Speaker], text: str, conversation: bool, tokens: int
) -> dict[str, str]:
    return {
        each.name: each.reply(text, tokens) if conversation else each.answer(text, tokens)
        for each in speakers
    }


def _typed() -> Iterator[str]:
    return (line.strip() for line in sys.stdin if line.strip())
