"""Tasks in the protocol of LLM-Adapters: the model writes, and the answer word is looked for.

    generate (4 beams, 32 new tokens) → first of the task's words in the text → compare

The eight commonsense sets hold rows {instruction, input, output, answer}. A text without any of
the words breaks the format, which is counted apart from a wrong answer (arXiv 2304.01933 counts
both as wrong, so its accuracy is `accuracy` here). Rows of other files may name their words at
the end of the instruction, "Answer format: a/b"; where they do not, the answer has to stand in
the text, and only an empty text breaks the format.

Differs from AGI-Edgerunners/LLM-Adapters: that also sets a temperature, top-p and top-k, which
beam search without sampling does not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from errata.core.errors import ErrataError
from errata.core.files import write_text
from errata.core.progress import Progress, no_progress
from errata.data.instructions import Instruction, read_rows
from errata.data.templates import TemplateName, render_prompt
from errata.metrics.generated import stands_in
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
"""The eight tasks and the words that answer them."""
BEAMS = 4
"""Beams of the search for a written answer, as the study has them."""
ROWS_PER_PART = 32
"""Rows that are asked together, kept together, and not asked again."""

_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")

Outcome = Literal["right", "wrong", "broken"]


class Answered(NamedTuple):
    """What a model wrote for one row."""

    text: str
    outcome: Outcome


class Task(NamedTuple):
    """A named set of rows."""

    name: str
    rows: tuple[Instruction, ...]


def read_task(name: str, data: Path, limit: int | None = None, mirror: Path | None = None) -> Task:
    """Read one of the eight from DATA/<name>/test.json, a file of rows, or hf:DATASET's test split.

    Raises `ErrataError` when there is none.
    """
    path = data / name / "test.json"
    if name in WORDS and not path.is_file():
        raise ErrataError(
            f"there is no {path}",
            "name the folder that holds <task>/test.json: --data DIR; LLM-Adapters publishes it "
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
    """Tell what a text is as an answer to a row of a task."""
    words = WORDS.get(task)
    if words is None and (named := _FORMAT.search(row.instruction)):
        words = tuple(named[1].split("/"))
    if words is None:
        return "right" if stands_in(row.right, text) else "wrong" if text.strip() else "broken"
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
    parts: Path | None = None,
    progress: Progress = no_progress,
) -> list[Answered]:
    """Let a model answer a task's rows, part by part; parts kept in the folder are not redone."""
    found: list[Answered] = []
    for start in range(0, len(task.rows), ROWS_PER_PART):
        path = None if parts is None else parts / f"{task.name}_{start:06d}.json"
        some = task.rows[start : start + ROWS_PER_PART]
        if path is not None and path.exists():
            found += [Answered(*kept) for kept in json.loads(path.read_text("utf-8"))]
            continue
        prompts = [
            render_prompt(template, row.instruction, row.input, edited.tokenizer) for row in some
        ]
        texts = continuations(
            edited.model,
            edited.tokenizer,
            [edited.rendered(asked.prompt) for asked in prompts],
            max_new_tokens,
            beams=beams,
        )
        new = [
            Answered(text, judge(task.name, row, text))
            for row, text in zip(some, texts, strict=True)
        ]
        if path is not None:
            write_text(path, json.dumps(new, ensure_ascii=False))
        found += new
        progress(len(found), len(task.rows))
    return found


def figures(answered: Sequence[Answered]) -> dict[str, Score]:
    """Return the shares of answers that are right (`accuracy`), `wrong`, and `broken_format`."""
    named: tuple[tuple[str, Outcome], ...] = (
        *(("accuracy", "right"), ("wrong", "wrong"), ("broken_format", "broken")),
    )
    scores = {name: share([each.outcome == kind for each in answered]) for name, kind in named}
    return {name: score for name, score in scores.items() if score is not None}
