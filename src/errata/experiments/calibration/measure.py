"""Scoring one choice of settings: edits, scores on the cases, and the drift on text.

The shared work of the edits, a target search, is done once per choice of the settings that it
depends on. It is kept in memory and as a part on disk, so that a trial that changes cheap
settings only solves and scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from errata.core.files import reading_own, write_safetensors
from errata.data.case import Case
from errata.experiments.edit_plan import EditPlan, batches_of, check_batches
from errata.experiments.parts import Format, Parts
from errata.methods import Method
from errata.methods.base import Job
from errata.metrics.base import EvalSettings
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.registry import Outcomes, prepared_metrics, score_metrics
from errata.metrics.scores import Score, harmonic_mean
from errata.metrics.text_drift import TextDrift
from errata.patches.edited_model import EditedModel
from errata.statistics.second_moment import SecondMoment

DRIFTS = 4
"""Edits whose drift is measured where each is made alone."""


class Measured(NamedTuple):
    """What one choice of settings did."""

    scores: dict[str, Score]
    drift: float
    """Mean KL divergence on text, nats per token."""
    scale_free: dict[str, float]

    def objectives(self) -> dict[str, float]:
        """Return the values to maximise: the kinds of prompt that the cases have."""
        return objectives(self.scores)

    @property
    def merit(self) -> float:
        """The harmonic mean of the objectives."""
        return harmonic_mean(list(self.objectives().values()))

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        scores = {name: score.model_dump() for name, score in self.scores.items()}
        return {"scores": scores, "drift": self.drift, "scale_free": self.scale_free}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Measured:
        """Return what `as_json` returned."""
        scores = {name: Score.of(score) for name, score in stored["scores"].items()}
        return cls(scores, float(stored["drift"]), dict(stored["scale_free"]))


def objectives(scores: Mapping[str, Score]) -> dict[str, float]:
    """Return efficacy, paraphrase and neighbourhood, or their accuracy without true answers."""
    found = {}
    for kind in PROMPT_KINDS:
        score = scores.get(kind, scores.get(f"{kind}_accuracy"))
        if score is not None:
            found[kind] = score.value
    return found


@dataclass
class Bench:
    """Cases, and everything to score settings on them."""

    edited: EditedModel
    cases: Sequence[Case]
    moments: Mapping[int, SecondMoment]
    plan: EditPlan
    drift: TextDrift
    folder: Path | None = None
    """Where the shared work is stored; None: only in memory."""
    last: tuple[str, Job] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.metrics = prepared_metrics(self.cases, EvalSettings())
        self.notes = check_batches(self.cases, self.plan)

    def job(self, method: Method) -> Job:
        """Return a job with the shared work done, from an earlier trial where there is one."""
        name = digest(method)
        if self.last is None or self.last[0] != name:
            job = method.begin(self.edited, [case.request for case in self.cases])
            parts = Parts[dict[str, Tensor]](self.folder, TENSORS)
            stored = parts.stored(name)
            if stored is not None:
                job = job.with_state(stored)
            else:
                job = job.shared()
                if self.folder is not None and (state := job.state()):
                    parts.format.write(self.folder / name, state)
            self.last = name, job
        return self.last[1].finished_by(method)

    def measure(self, method: Method) -> Measured:
        """Edit all cases and score them; the model is left as found."""
        job, found, drifts = self.job(method), Outcomes(), list[float]()
        # What is derived for one λ or threshold would fill the memory after many trials.
        moments = {b: self.moments[b].fresh() for b in method.moment_blocks}
        start, scale_free = 0, dict[str, float]()
        for number, batch in enumerate(batches_of(self.cases, self.plan)):
            part = job.take(range(start, start + len(batch)))
            edit = method.edit(
                self.edited, part.requests, moments=moments, job=part, notes=self.notes[number]
            )
            scale_free = scale_free or method.scale_free(edit, moments)
            self.edited.apply(edit)
            try:
                found.extend(score_metrics(self.metrics, self.edited, batch, start))
                if number < DRIFTS:
                    drifts.append(self.drift.of_now(self.edited))
            finally:
                self.edited.undo()
            start += len(batch)
        return Measured(found.summary, sum(drifts) / len(drifts), scale_free)


def digest(method: Method) -> str:
    """Return a name for the settings that shared work depends on."""
    text = json.dumps([method.name, method.shared_settings()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path.with_name(f"{path.name}.safetensors")
    if not file.exists():
        return None
    with reading_own(file):
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(str(error)) from None


def _write(path: Path, state: dict[str, Tensor]) -> None:
    write_safetensors(path.with_name(f"{path.name}.safetensors"), state, {})


TENSORS: Format[dict[str, Tensor]] = Format(_read, _write)
"""Parts of tensors, as `<name>.safetensors`."""
