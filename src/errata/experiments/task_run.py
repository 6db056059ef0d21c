"""Task runs: generated answers and tasks of lm-eval on one model, stored part by part.

    results/tasks/run_<NNN>/  params.json answers.jsonl summary.json report.md

Results of the two protocols have separate names. Generated answers are stored in parts, tasks of
lm-eval once each is finished; an interrupted run resumes from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import Field

from errata.core.errors import ErrataError
from errata.core.progress import Progress, no_progress, shifted
from errata.core.settings import Settings
from errata.data.instructions import Instruction, digest_of
from errata.data.templates import TemplateName, resolve_template
from errata.experiments.parts import Parts, chunks, json_format, json_list
from errata.experiments.run_files import write_results
from errata.experiments.run_folder import run_folder
from errata.metrics import lm_eval
from errata.metrics import tasks as commonsense
from errata.metrics.prompts import inactive_note
from errata.metrics.scores import Amount, Score, plain_scores
from errata.patches.edited_model import EditedModel
from errata.reports.tables import markdown_table

ROWS_PER_PART = 32
"""Rows that are answered and stored together; a part is the unit of resume."""
HARNESS_TEXTS = "lm-eval's own texts"
"""What prompt patches do not act on in a run of tasks."""
Scores = dict[str, dict[str, Score]]
"""Scores by task and name."""
Found = dict[str, dict[str, Any]]
"""Per task: its `protocol`, and its scores by name as `figures`."""


class TaskSettings(Settings):
    """Tasks, their data, and how answers are generated."""

    tasks: tuple[str, ...] = ()
    """Tasks with generated answers: the eight by name, `all`, files, or hf:DATASET."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-eval."""
    data: str = "dataset"
    """The folder that contains <task>/test.json."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of rows per task."""
    template: TemplateName = "auto"
    """Prompt template of an instruction."""
    beams: int = Field(4, ge=1)
    """Number of beams; 4 in the paper."""
    max_new_tokens: int = Field(32, ge=1)
    """Maximum length of a generated answer, in tokens."""
    shots: int | None = None
    """Number of few-shot examples, for lm-eval."""
    mirror: str | None = None
    """Folder with copies of Hub datasets."""
    harness_folder: str | None = None
    """Folder with custom task files, for lm-eval."""

    @property
    def protocol(self) -> str:
        """Description of the protocol of generated answers."""
        return (
            f"written: {self.beams} beams, {self.max_new_tokens} new tokens, "
            "then the first answer word"
        )


def run_tasks(
    edited: EditedModel,
    asking: TaskSettings,
    results: Path,
    command: str | None = None,
    progress: Progress = no_progress,
) -> tuple[dict[str, Found], Path]:
    """Run tasks on a model and, if it has patches, on the model without them.

    Returns the results `after` and, with patches, `before`, and the run's folder. Raises
    `ErrataError` for unknown tasks.
    """
    tasks = read_tasks(asking)
    asking = asking.with_values(template=resolve_template(asking.template, edited.tokenizer))
    params = {
        "model": edited.base.model_dump(),
        "dtype": str(edited.model.dtype),
        "patches": [patch.digest for patch in edited.patches],
        "asking": asking.model_dump(mode="json"),
        "rows": {task.name: digest_of(task.rows) for task in tasks},
    }
    halves = ("before", "after") if edited.patches else ("after",)
    note = inactive_note(edited, HARNESS_TEXTS) if asking.harness else None
    found: dict[str, Found] = {}
    records: list[dict[str, Any]] = []
    with run_folder(results, "tasks", params, command) as (folder, _):
        for half in halves:
            state = edited.without_patches() if half == "before" else nullcontext()
            with state:
                found[half] = _generated(edited, tasks, asking, folder, half, records, progress)
                found[half] |= _harness(edited, asking, folder, half)
        write_results(
            folder,
            f"tasks, {folder.name}: {edited.name}",
            [*_sections(found), *([f"{note}."] if note else [])],
            {half: as_json(tasks) for half, tasks in found.items()},
            records=records,
            records_name="answers.jsonl",
            command=command,
        )
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return found, folder


def read_tasks(asking: TaskSettings) -> list[commonsense.Task]:
    """Read the rows of the tasks; raises `ErrataError` for unknown names and unreadable files."""
    names: list[str] = []
    for name in asking.tasks:
        names += commonsense.WORDS if name == "all" else [name]
    mirror = None if asking.mirror is None else Path(asking.mirror)
    read = [commonsense.read_task(name, Path(asking.data), asking.limit, mirror) for name in names]
    if len({task.name for task in read}) < len(read):
        raise ErrataError(
            "two tasks have the same name", "list each task once, and give files different names"
        )
    return read


def _generated(
    edited: EditedModel,
    tasks: list[commonsense.Task],
    asking: TaskSettings,
    folder: Path,
    half: str,
    records: list[dict[str, Any]],
    progress: Progress,
) -> Found:
    found: Found = {}
    parts = Parts(
        folder / "parts" / half,
        json_list(tuple, lambda stored: commonsense.Answered(*stored)),
    )
    total, done = sum(len(task.rows) for task in tasks), 0
    for task in tasks:
        answered = _answered(edited, task, asking, parts, shifted(progress, done, total))
        done += len(task.rows)
        figures = commonsense.figures(answered)
        found[task.name] = {"protocol": asking.protocol, "figures": figures}
        for row, each in zip(task.rows, answered, strict=True):
            record = {"half": half, "task": task.name, "right": row.right, **each._asdict()}
            records.append(record)
    return found


def _answered(
    edited: EditedModel,
    task: commonsense.Task,
    asking: TaskSettings,
    parts: Parts[list[commonsense.Answered]],
    progress: Progress,
) -> list[commonsense.Answered]:
    """Answer a task's rows part by part."""

    def work(_: int, rows: Sequence[Instruction]) -> list[commonsense.Answered]:
        return commonsense.answer_rows(
            edited,
            task._replace(rows=tuple(rows)),
            asking.template,
            beams=asking.beams,
            max_new_tokens=asking.max_new_tokens,
        )

    def name(start: int) -> str:
        return f"{task.name}_{start:06d}"

    return chunks(parts, task.rows, ROWS_PER_PART, name, work, progress)


def _harness(edited: EditedModel, asking: TaskSettings, folder: Path, half: str) -> Found:
    def work(name: str) -> Scores:
        return lm_eval.run_harness(
            edited,
            [name],
            limit=asking.limit,
            shots=asking.shots,
            mirror=None if asking.mirror is None else Path(asking.mirror),
            folder=None if asking.harness_folder is None else Path(asking.harness_folder),
        )

    found: Found = {}
    parts = Parts(folder / "parts" / half, json_format(_stored, _read))
    for scores in parts.each({f"lm-eval_{name}": name for name in asking.harness}, work):
        for task, figures in scores.items():
            found[f"lm-eval:{task}"] = {"protocol": lm_eval.PROTOCOL, "figures": figures}
    return found


def _stored(scores: Scores) -> dict[str, dict[str, tuple[bool, dict[str, Any]]]]:
    return {
        task: {name: (isinstance(s, Amount), s.model_dump()) for name, s in some.items()}
        for task, some in scores.items()
    }


def _read(stored: dict[str, Any]) -> Scores:
    return {
        task: {name: (Amount if amount else Score)(**s) for name, (amount, s) in some.items()}
        for task, some in stored.items()
    }


def as_json(found: Found) -> dict[str, Any]:
    """Return results as JSON values."""
    return {
        task: {**each, "figures": plain_scores(each["figures"])} for task, each in found.items()
    }


def _sections(found: dict[str, Found]) -> list[str]:
    """Return the sections of the report."""
    rows = [
        [task, each["protocol"], half, name, str(score)]
        for half, some in found.items()
        for task, each in some.items()
        for name, score in each["figures"].items()
    ]
    return [
        markdown_table(("task", "protocol", "patches", "figure", "value"), rows),
        "`accuracy` counts an answer without an answer word as wrong; `broken_format` is the "
        "share of such answers. Figures of the two protocols are not comparable.",
    ]
