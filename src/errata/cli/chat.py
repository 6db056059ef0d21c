"""`errata chat`: continue prompts with the base, the edited and the tuned model side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model

if TYPE_CHECKING:
    from errata.experiments.conversation import Speaker
    from errata.patches.edited_model import EditedModel


@on_model("results")
def chat(
    on: OnModel,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A prompt to continue; may be repeated."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")
    ] = 32,
    conversation: Annotated[
        bool,
        typer.Option(
            "--conversation", "-c", help="Treat the prompts as turns of one conversation."
        ),
    ] = False,
) -> None:
    """Continue prompts by greedy decoding; with patches, before and after side by side.

    With an adapter or a run of `errata tune` on an edited model, shows the base, the edited and
    the tuned model. Without -p, prompts are read from standard input, one per line.

    Example: errata chat demo --adapter results/tune/run_000 -p "Selma Zeller works as a"
    """
    from errata.experiments.conversation import speakers_of

    edited = on.load()
    before = None
    if on.adapter is not None:
        before = _below(on, on.adapter)
    speakers = speakers_of(edited, before)
    rows = []
    if not on.json:
        console.verb(f"errata chat {on.model}")
    for text in prompt or _typed():
        rows.append({"prompt": text, **_answers(speakers, text, conversation, max_new_tokens)})
        if not on.json and prompt is None:
            console.text("\n".join(f"{key}: {value.strip()}" for key, value in rows[-1].items()))
    if on.json:
        console.as_json({"model": on.model, "patches": on.patches, "answers": rows})
    elif prompt is not None:
        console.table(list(rows[0]), [[value.strip() for value in row.values()] for row in rows])


def _below(on: OnModel, adapter: str) -> EditedModel | None:
    """Load the edited model on which an adapter was tuned; None if no edits are recorded."""
    from errata.models.identity import same_weights
    from errata.patches.adapter import find_tuned

    tuned = find_tuned(adapter)
    below = tuned.below
    if not below:
        return None
    edited = replace(on, patch=None, adapter=None, adapter_kind=None).load()
    made_for = below[0].provenance.base
    same = on.allow_base or same_weights(made_for.weights, edited.base.weights)
    if tuned.checkpoint is not None and not same:
        console.warning(
            f"{adapter} was tuned on an edited {made_for.name}, but {on.model} is another model; "
            "only the tuned model is shown"
        )
        return None
    for each in below:
        edited.apply(each, allow_base=on.allow_base)
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
