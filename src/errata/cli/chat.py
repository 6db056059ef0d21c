"""`errata chat`: continue prompts with the base, the edited and the tuned model side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.cli.options import System
from errata.core.errors import ErrataError

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel

NOTHING = "(nothing)"
"""Shown in place of an answer that is empty or white space."""


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
    template: Annotated[
        str | None,
        typer.Option(
            help="Answer prompts as messages in a chat (the default if the tokenizer has a "
            "template), or continue them as text (none).",
            metavar="none|chat",
        ),
    ] = None,
    system: System = None,
    conversation: Annotated[
        bool,
        typer.Option(
            "--conversation", "-c", help="Treat the prompts as turns of one conversation."
        ),
    ] = False,
) -> None:
    """Answer prompts by greedy decoding; with patches, before and after side by side.

    A model with a chat template answers each prompt as a message; others continue it. With an
    adapter or a run of `errata tune` on an edited model, shows the base, the edited and the tuned
    model. Without -p, prompts are read from standard input, one per line.

    Example: errata chat demo --adapter results/tune/run_000 -p "Selma Zeller works as a"
    """
    from errata.experiments.conversation import Speaker, speakers_of

    if template not in (None, "none", "chat"):
        raise ErrataError(f"unknown template {template!r}", "choose none or chat")
    edited = on.load()
    before = None
    if on.adapter is not None:
        before = _below(on, on.adapter)
    in_chat = _in_chat(edited, template, system, conversation)
    speakers = [
        replace(each, template=in_chat, system=system) for each in speakers_of(edited, before)
    ]
    how = Speaker.reply if conversation else Speaker.asked if in_chat else Speaker.answer
    rows = []
    if not on.json:
        console.verb(f"errata chat {on.model}")
    for text in prompt or _typed():
        answers = {each.name: how(each, text, max_new_tokens) for each in speakers}
        rows.append({"prompt": text, **answers})
        if not on.json and prompt is None:
            console.text("\n".join(f"{key}: {_shown(value)}" for key, value in rows[-1].items()))
    if on.json:
        console.as_json({"model": on.model, "patches": on.patches, "answers": rows})
    elif prompt is not None:
        console.table(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows])


def _in_chat(
    edited: EditedModel, template: str | None, system: str | None, conversation: bool
) -> bool:
    """Return whether prompts are messages in the tokenizer's chat template."""
    has_one = bool(edited.tokenizer.chat_template)
    if template == "chat" and not has_one:
        raise ErrataError(f"{edited.name} has no chat template", "leave --template out")
    in_chat = has_one and template != "none"
    if system is not None and not (in_chat or conversation):
        raise ErrataError(
            "a system message needs a chat", "use a model with a chat template, or --conversation"
        )
    return in_chat


def _shown(text: str) -> str:
    """Return a cell of the table, which is never blank."""
    return text.strip() or NOTHING


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


def _typed() -> Iterator[str]:
    return (line.strip() for line in sys.stdin if line.strip())
