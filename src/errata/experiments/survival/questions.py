"""The data of a matrix, read as its settings specify: cases, rows, tasks and texts."""

from __future__ import annotations

from pathlib import Path

from errata.core.errors import ErrataError
from errata.core.text import counted
from errata.data.datasets import read_cases
from errata.data.instructions import Instruction, read_rows
from errata.data.passages import read_passages
from errata.experiments.survival.measure import Questions
from errata.experiments.survival.settings import Matrix, Tuning
from errata.metrics.tasks import WORDS, Task, read_task

HELD_OUT = "rows_set_aside"


def read_questions(
    matrix: Matrix, cache: Path | None = None, mirror: Path | None = None
) -> tuple[Questions, list[Instruction]]:
    """Return everything on which models are scored, and the rows to tune on.

    Raises `ErrataError` if there are too few cases or rows.
    """
    most = max(matrix.edits)
    cases = read_cases(matrix.dataset, most + matrix.controls, cache=cache)
    if len(cases) < most:
        raise ErrataError(
            f"{matrix.dataset} has {counted(len(cases), 'case')}, fewer than the {most} to edit",
            "edit fewer: --edits",
        )
    rows = read_rows(matrix.data, mirror)
    if matrix.hold_out >= len(rows):
        raise ErrataError(
            f"{matrix.data} has {len(rows)} rows; none remain when {matrix.hold_out} are held out",
            "hold out fewer: --hold-out",
        )
    names = [each for name in matrix.tasks for each in (WORDS if name == "all" else [name])]
    tasks = [read_task(name, Path(matrix.task_data), matrix.task_limit, mirror) for name in names]
    if matrix.hold_out:
        held = tuple(rows[-matrix.hold_out :])
        rows = rows[: -matrix.hold_out]
        tasks.append(Task(HELD_OUT, held))
    first = matrix.settings_of(Tuning.parse(matrix.tunings[0]), 0)
    questions = Questions(
        cases[:most],
        cases[most:],
        tasks,
        read_passages(matrix.text, mirror) if matrix.text is not None else (),
        first.template,
        matrix.max_new_tokens,
    )
    return questions, rows
