"""Tasks in the protocol of LLM-Adapters: generate text and search it for the answer word.

    generate (4 beams, 32 new tokens) → first of the task's words in the text → compare

The eight commonsense datasets have rows {instruction, input, output, answer}. A text without any
of the words is a broken format, counted separately from a wrong answer (arXiv 2304.01933 counts
both as wrong, so its accuracy is `accuracy` here). Rows of other files may list their words at
the end of the instruction, "Answer format: a/b"; otherwise the text must contain the answer, and
only an empty text is a broken format.

Differs from AGI-Edgerunners/LLM-Adapters: that also sets temperature, top-p and top-k, which
beam search without sampling ignores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from errata.core.errors import ErrataError
from errata.data.instructions import Instruction, read_rows
from errata.data.templates import TemplateName, chat_message, render_prompt, resolve_template
from errata.metrics.generated import contains_answer
from errata.metrics.scores import Score, share
from errata.models.generation import continuations
from errata.patches.edited_model import EditedModel

_NUMBERED = {
    "piqa": ("solution", 2),
    "social_i_qa": ("answer", 5),
    "ARC-Challenge": ("answer", 5),
    "ARC-Easy": ("answer", 5),
    "openbookqa": ("answer", 5),
    "hellaswag": ("ending", 4),
    "winogrande": ("option", 2),
}
WORDS: dict[str, tuple[str, ...]] = {
    "boolq": ("true", "false"),
    **{task: tuple(f"{word}{i}" for i in range(1, n + 1)) for task, (word, n) in _NUMBERED.items()},
}
"""The eight tasks and their answer words."""
BEAMS = 4
"""Number of beams, as in the paper."""

_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")

Outcome = Literal["right", "wrong", "broken"]


class Answered(NamedTuple):
    """The text that a model generated for one row, and how it was judged."""

    text: str
    outcome: Outcome


class Task(NamedTuple):
    """A named set of rows."""

    name: str
    rows: tuple[Instruction, ...]


def read_task(name: str, data: Path, limit: int | None = None, mirror: Path | None = None) -> Task:
    """Read one of the eight from DATA/<name>/test.json, a file of rows, or hf:DATASET's test split.

    Raises `ErrataError` if it does not exist.
    """
    path = data / name / "test.json"
    if name in WORDS and not path.is_file():
        raise ErrataError(
            f"there is no {path}",
            "give the folder that contains <task>/test.json: --data DIR; LLM-Adapters publishes it "
            "as `dataset`",
        )
    is_file = Path(name).is_file() or name.startswith("hf:")
    if name not in WORDS and not is_file:
        raise ErrataError(
            f"there is no task or file {name!r}",
            f"known tasks: {', '.join(WORDS)}",
            "or give a .json or .jsonl file of {instruction, input, output, answer}, hf:DATASET, "
            "or a task of lm-eval: --harness NAME",
        )
    rows = read_rows(str(path) if name in WORDS else name, mirror, "test")
    shown = name if name in WORDS or name.startswith("hf:") else Path(name).stem
    return Task(shown.replace("/", "_"), tuple(rows[:limit]))


def judge(task: str, row: Instruction, text: str) -> Outcome:
    """Return whether a text answers a row of a task correctly, wrongly, or in a broken format."""
    words = WORDS.get(task)
    if words is None and (named := _FORMAT.search(row.instruction)):
        words = tuple(named[1].split("/"))
    if words is None:
        return (
            "right" if contains_answer(row.right, text) else "wrong" if text.strip() else "broken"
        )
    found = re.search("|".join(map(re.escape, words)), text)
    if found is None:
        return "broken"
    return "right" if found[0] == row.right else "wrong"


def answer_rows(
    edited: EditedModel,
    task: Task,
    template: TemplateName = "auto",
    *,
    beams: int = BEAMS,
    max_new_tokens: int = 32,
) -> list[Answered]:
    """Generate answers to a task's rows.

    Prompts pass through `EditedModel.rendered`; with a chat template the message does, since
    nothing may precede the template's first marker.
    """
    prompts = [_prompt(edited, template, row) for row in task.rows]
    texts = continuations(edited.model, edited.tokenizer, prompts, max_new_tokens, beams=beams)
    return [
        Answered(text, judge(task.name, row, text))
        for row, text in zip(task.rows, texts, strict=True)
    ]


def _prompt(edited: EditedModel, template: TemplateName, row: Instruction) -> str:
    if resolve_template(template, edited.tokenizer) == "chat":
        message = edited.rendered(chat_message(row.instruction, row.input))
        return render_prompt("chat", message, "", edited.tokenizer).prompt
    asked = render_prompt(template, row.instruction, row.input, edited.tokenizer)
    return edited.rendered(asked.prompt)


def figures(answered: Sequence[Answered]) -> dict[str, Score]:
    """Return the shares of correct answers (`accuracy`), `wrong` ones, and `broken_format`."""
    named: tuple[tuple[str, Outcome], ...] = (
        *(("accuracy", "right"), ("wrong", "wrong"), ("broken_format", "broken")),
    )
    scores = {name: share([each.outcome == kind for each in answered]) for name, kind in named}
    return {name: score for name, score in scores.items() if score is not None}
