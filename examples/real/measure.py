"""Measure a method on a real model: edits alone, in batches of 10 and 100, and 10 × 10 in sequence.

    python examples/real/measure.py rome --dataset counterfact_full.json --out rome.json

The facts are those of the dataset after the first hundred, which the shipped presets were chosen
on. Target searches on the unedited model are done once for all plans but the sequence. Text is
generated about some of the facts only (`--texts`), since that takes most of the time. Each plan is
written to the file as soon as it is measured; plans that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import errata
from errata.core.files import parse_json, write_text
from errata.data.case import Case
from errata.data.corpus import read_corpus
from errata.data.datasets import load_cases
from errata.methods import Method, method_named
from errata.methods.base import Job
from errata.methods.edit import Prepared, prepare
from errata.metrics.base import EvalSettings
from errata.metrics.registry import Outcomes, prepared_metrics, score_metrics
from errata.metrics.scores import Score
from errata.metrics.text_drift import LENGTH, TEXTS, TextDrift
from errata.patches.edited_model import EditedModel
from errata.statistics.store import default_store

CHOSEN_ON = 100
"""Records that the presets were chosen on."""
PLANS = ("before", "alone", "10", "100", "10x10")


class Measure:
    """A model, the facts and what is measured on them."""

    def __init__(
        self,
        edited: EditedModel,
        prepared: Prepared,
        cases: Sequence[Case],
        text: str,
        generated: int,
    ) -> None:
        self.edited, self.cases = edited, list(cases)
        self.method: Method = prepared.method.sampled(edited)
        self.moments = prepared.moments
        self.likelihoods = prepared_metrics(self.cases, EvalSettings())
        names = {metric.name for metric in self.likelihoods}
        generating = prepared_metrics(self.cases, EvalSettings(generate=True))
        self.texts = [metric for metric in generating if metric.name not in names]
        self.every = max(1, len(self.cases) // generated)
        self.drift = TextDrift.of(edited, _texts(text))
        self._job: Job | None = None

    @property
    def job(self) -> Job:
        """The target searches of all facts on the unedited model, done once."""
        if self._job is None:
            requests = [case.request for case in self.cases]
            self._job = self.method.begin(self.edited, requests).shared()
        return self._job

    def before(self) -> dict[str, Any]:
        """Return the scores of the unedited model."""
        return _summary(self._outcomes(self.cases, 0), [0.0])

    def apart(self, size: int, count: int) -> dict[str, Any]:
        """Return the scores of batches that are each made on the unedited model."""
        found, drifts = Outcomes(), []
        for start in range(0, count, size):
            batch = self.cases[start : min(start + size, count)]
            part = self.job.take(range(start, start + len(batch)))
            self._apply(batch, part)
            found.extend(self._outcomes(batch, start))
            drifts.append(self.drift.of_now(self.edited))
            self.edited.undo()
        return _summary(found, drifts)

    def in_sequence(self, size: int, count: int) -> dict[str, Any]:
        """Return the scores after the last of batches that are made one upon another."""
        for start in range(0, count, size):
            batch = self.cases[start : start + size]
            self._apply(batch, self.method.begin(self.edited, [case.request for case in batch]))
        found = self._outcomes(self.cases[:count], 0)
        drifts = [self.drift.of_now(self.edited)]
        while self.edited.patches:
            self.edited.undo()
        return _summary(found, drifts)

    def _outcomes(self, cases: Sequence[Case], start: int) -> Outcomes:
        found = score_metrics(self.likelihoods, self.edited, cases, start)
        for index, case in enumerate(cases, start):
            if index % self.every == 0:
                found.extend(score_metrics(self.texts, self.edited, [case], index))
        return found

    def _apply(self, batch: Sequence[Case], job: Job) -> None:
        limit = self.method.batch_limit or len(batch)
        for start in range(0, len(batch), limit):
            part = batch[start : start + limit]
            if start:  # a method of one request at a time searches on the model edited so far
                job = self.method.begin(self.edited, [case.request for case in part])
            chosen = job if len(part) == len(job.requests) else job.take(range(len(part)))
            requests = [case.request for case in part]
            edit = self.method.edit(self.edited, requests, moments=self.moments, job=chosen)
            self.edited.apply(edit)


def _summary(found: Outcomes, drifts: Sequence[float]) -> dict[str, Any]:
    scores: dict[str, Score] = found.summary
    return {
        "scores": {name: score.model_dump() for name, score in scores.items()},
        "kl_on_text": sum(drifts) / len(drifts),
    }


def _texts(corpus: str) -> list[str]:
    found = [text for text, _ in zip(read_corpus(corpus).texts, range(2000), strict=False)]
    return sorted(found, key=lambda text: -min(len(text.split()), LENGTH))[:TEXTS]


def _plans(measure: Measure) -> Iterator[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """Yield the name of each plan, its number of facts, and how to measure it."""
    every, some = len(measure.cases), min(100, len(measure.cases))
    yield "before", every, measure.before
    yield "alone", every, lambda: measure.apart(1, every)
    yield "10", every, lambda: measure.apart(10, every)
    yield "100", some, lambda: measure.apart(some, some)
    yield "10x10", some, lambda: measure.in_sequence(10, some)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("method")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--text", required=True, help="a corpus for the drift")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", type=Path)
    parser.add_argument("--limit", type=int, default=184)
    parser.add_argument("--offset", type=int, default=CHOSEN_ON)
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--texts", type=int, default=30, help="facts to generate text about")
    parser.add_argument("--device")
    given = parser.parse_args()
    edited = errata.load(given.model, device=given.device)
    cases = load_cases(given.dataset, given.limit, given.offset).cases
    method = method_named(given.method)
    plain = {"contexts": {"template": "none"}}
    prepared = prepare(edited, method, plain, preset=given.preset, store=default_store())
    measure = Measure(edited, prepared, cases, given.text, given.texts)
    found: dict[str, Any] = {}
    if given.out.exists():
        found = parse_json(given.out.read_text(encoding="utf-8"))
    on_card = edited.model.device.type == "cuda"
    found |= {
        "model": edited.base.model_dump(),
        "method": method.name,
        "settings": measure.method.model_dump(mode="json"),
        "sources": list(prepared.facts),
        "device": torch.cuda.get_device_name() if on_card else "CPU",
        "versions": {"torch": torch.__version__, "errata": errata.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, count, work in _plans(measure):
        if name in given.plans.split(",") and name not in found.setdefault("plans", {}):
            begun = time.perf_counter()
            found["plans"][name] = {"facts": count, **work()}
            found["plans"][name]["seconds"] = time.perf_counter() - begun
            write_text(given.out, json.dumps(found, indent=1) + "\n")
            print(f"{given.method}, {name}: {found['plans'][name]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
