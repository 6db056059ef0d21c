"""`errata lens`: the logit lens, which decodes the hidden state after every block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import console
from errata.cli.model_options import OnModel, on_model
from errata.data.request import EditRequest

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel
    from errata.tracing.lens import Lens


@on_model("results")
def lens(
    on: OnModel,
    prompt: Annotated[
        str, typer.Argument(help='A prompt, its subject in braces: "The {Eiffel Tower} is in".')
    ],
    answer: Annotated[
        str | None,
        typer.Argument(
            help="The answer whose first token's probability is shown; default: the model's answer."
        ),
    ] = None,
    *,
    subject: Annotated[
        str | None, typer.Option(help="The subject, if the prompt marks its place with {}.")
    ] = None,
) -> None:
    """Logit lens: decode the hidden state after every block; with patches, before and after."""
    request = EditRequest.parse(prompt, answer or "?", subject)
    edited = on.load()
    read = _read(edited, request, None if answer is None else request.answer)
    found = {half: one for half, (one, _) in read.items()}
    now = found["after"]
    if on.json:
        halves = {half: one.as_json() for half, one in found.items()}
        if found.get("before", now).tokens != now.tokens:  # a prompt patch changes the prompt
            halves["before"]["tokens"] = list(found["before"].tokens)
        beside = {"text": request.text, "tokens": list(now.tokens), "answer": now.answer}
        console.as_json({"model": on.model, "patches": len(edited.patches), **beside, **halves})
        return
    console.verb(f"errata lens {on.model}")
    console.fact(f"{request.text} → {now.answer.strip()}")
    for half, (one, span) in read.items():
        title = "P(answer's first token)" + (f" {half} the patches" if len(found) > 1 else "")
        labels = [_label(token, place in range(*span)) for place, token in enumerate(one.tokens)]
        console.heat_map(f"{title}, by token and block", labels, one.answers.tolist(), 0.0, 1.0)
    console.table(*_table(found, "last token", dict.fromkeys(found, -1)))
    ends = {half: span[1] - 1 for half, (_, span) in read.items()}
    console.table(*_table(found, "subject's last token", ends))


def _read(
    edited: EditedModel, request: EditRequest, answer: str | None
) -> dict[str, tuple[Lens, tuple[int, int]]]:
    """Read the lens on the model and, if it has patches, on the model without them.

    Beside each lens stand the first token of the subject and the one past its end. Both follow
    the same answer.
    """
    from errata.experiments.trace_run import ask
    from errata.tracing.lens import read_lens

    model, tokenizer = edited.model, edited.tokenizer
    question = ask(edited, request.text, request.span, answer)
    after = read_lens(model, tokenizer, question), question.subject
    if not edited.patches:
        return {"after": after}
    followed = question.targets[0]
    with edited.without_patches():
        plain = ask(edited, request.text, request.span, answer)
        before = read_lens(model, tokenizer, plain, followed), plain.subject
    return {"before": before, "after": after}


def _label(token: str, of_subject: bool) -> str:
    from errata.reports.figures import readable

    return readable(token) + ("*" if of_subject else "")


def _table(
    found: dict[str, Lens], name: str, places: dict[str, int]
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return columns and rows: per block the top token, its probability and the answer's.

    `places` holds the token's position, with the patches and without.
    """
    halves = list(found.items())
    columns = ["block"]
    for half, _ in halves:
        title = f"{name}, {half}" if len(halves) > 1 else name
        columns += [title, "P", "P(answer)"]
    rows = []
    for block in range(halves[0][1].answers.shape[1]):
        row = [str(block)]
        for half, one in halves:
            place = places[half]
            row += [
                one.said[place][block].strip() or repr(one.said[place][block]),
                f"{one.likeliest[place, block]:.3f}",
                f"{one.answers[place, block]:.3f}",
            ]
        rows.append(row)
    return tuple(columns), rows
