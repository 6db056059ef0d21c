"""Tasks of lm-eval, run by its own harness on a model in memory.

The harness compares log-likelihoods of given answers, so its accuracy is not comparable with
that of generated answers (`tasks`). The harness builds its own texts, so prompt patches do not act
here; other edits do. Only this module imports `lm_eval`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError
from errata.data.hub import mirrored
from errata.metrics.scores import Z95, Amount, Score, share
from errata.models.generation import default_settings, ends_of_sequence
from errata.models.hooks import frozen
from errata.patches.edited_model import EditedModel

PROTOCOL = "lm-eval's own harness"
_SHARES = ("acc", "acc_norm", "exact_match", "em", "f1", "mcc", "acc_mutual_info")


def run_harness(
    edited: EditedModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    mirror: Path | None = None,
    folder: Path | None = None,
    add_bos: bool | None = None,
) -> dict[str, dict[str, Score]]:
    """Return the scores of every task, by the names of task and score.

    `mirror` is a folder with copies of the Hub datasets that the tasks read, `folder` one with
    custom task files. `add_bos` False prevents a second BOS in rolling likelihoods. Binary
    scores get Wilson intervals, others lm-eval's standard error. Raises `ErrataError` for
    unknown tasks and for tasks whose data is not available.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ErrataError(
            "lm-eval's tasks need an extra", "pip install 'errata-lm[eval]'"
        ) from None
    with _quiet(), frozen(edited.model):
        manager = TaskManager(include_path=None if folder is None else str(folder))
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if unknown:
            raise ErrataError(
                f"lm-eval knows no task {', '.join(unknown)}",
                "`lm-eval ls tasks` lists them; for custom task files: --harness-folder DIR",
            )
        model = HFLM(
            pretrained=edited.model,
            tokenizer=edited.tokenizer,
            batch_size=batch_size,
            add_bos_token=add_bos,
        )
        ends = ends_of_sequence(edited.model, edited.tokenizer)
        with _reading(mirror), default_settings(edited.model, eos_token_id=ends or None):
            try:
                found = lm_eval.simple_evaluate(
                    model=model, tasks=list(tasks), task_manager=manager, limit=limit,
                    num_fewshot=shots, bootstrap_iters=1000,
                )  # fmt: skip
            except ErrataError:
                raise
            except Exception as error:  # tasks' data and code raise anything
                raise ErrataError(
                    f"lm-eval cannot run {', '.join(tasks)}: {type(error).__name__}: {error}",
                    "without network, give a folder with copies of the tasks' datasets: "
                    "--mirror DIR, every split that the task names among them",
                ) from None
    samples = found.get("samples") or {}
    return {
        task: _figures(values, samples.get(task, ()), found["n-samples"].get(task))
        for task, values in found["results"].items()
    }


def _figures(
    values: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int] | None,
) -> dict[str, Score]:
    """Return a task's scores with intervals; `n` is the number of its documents."""
    n = len(samples) or int((counts or {}).get("effective", 0)) or int(values.get("sample_len", 0))
    scores: dict[str, Score] = {}
    for key, value in values.items():
        name, _, filter_name = key.partition(",")
        if not filter_name or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        label = name if filter_name == "none" else f"{name}_{filter_name}"
        outcomes = [sample[name] for sample in samples if name in sample]
        if name in _SHARES and outcomes and all(each in (0, 1) for each in outcomes):
            score = share([bool(each) for each in outcomes])
            assert score is not None
            scores[label] = score
            continue
        error = values.get(f"{name}_stderr,{filter_name}")
        half = Z95 * error if isinstance(error, int | float) else 0.0
        kind = Score if name in _SHARES else Amount
        scores[label] = kind(value=value, low=value - half, high=value + half, n=n)
    return scores


@contextmanager
def _reading(mirror: Path | None) -> Iterator[None]:
    """Redirect the dataset downloads of lm-eval's tasks to a mirror within the block."""
    import datasets

    real = datasets.load_dataset

    def load(path: str, name: str | None = None, **rest: Any) -> Any:
        assert mirror is not None
        return real(*mirrored(path, name, mirror), **rest)

    try:
        if mirror is not None:
            datasets.load_dataset = load
        yield
    finally:
        datasets.load_dataset = real


@contextmanager
def _quiet() -> Iterator[None]:
    """Set lm-eval's log level to errors within the block."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
