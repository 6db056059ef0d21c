"""`METRICS`: every metric of an evaluation, in the order in which tables show them.

A metric that is added here is scored by `errata edit`, `errata eval` and recipes, stored in
`cases.jsonl`, and shown in tables, reports, `summary.json` and `errata summarize`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from errata.data.case import Case
from errata.metrics.base import (
    EvalSettings,
    LikelihoodMetric,
    Metric,
    in_unit,
    score_together,
)
from errata.metrics.generated import Generated
from errata.metrics.scores import Score
from errata.metrics.teacher_forced import PromptScore, TeacherForced
from errata.metrics.text_quality import TextQuality
from errata.patches.edited_model import EditedModel

METRICS: dict[str, Metric[Any]] = {
    metric.name: metric for metric in (TeacherForced(), Generated(), TextQuality())
}
"""Every metric by its name."""
NO_SCORES = ("before", "in_prompt", "plan", "advice", "stopped_short")
"""Keys of a `summary.json` beside the scores after editing."""


@dataclass
class Outcomes:
    """The outcomes of one model by metric: of the model with its patches, or without them."""

    by_metric: dict[str, list[Any]] = field(default_factory=dict)
    """Per name of a metric one outcome per case, None where there is none."""

    @property
    def tables(self) -> dict[str, dict[str, Score]]:
        """Scores by name, by the title of their table."""
        found: dict[str, dict[str, Score]] = {}
        for name, metric in METRICS.items():
            outcomes = [each for each in self.by_metric.get(name, ()) if each is not None]
            if scores := metric.summarise(outcomes):
                found.setdefault(metric.title, {}).update(scores)
        return found

    @property
    def summary(self) -> dict[str, Score]:
        """All scores by name."""
        return {name: score for scores in self.tables.values() for name, score in scores.items()}

    def record(self, index: int) -> dict[str, Any]:
        """Return the outcomes of one case as JSON values."""
        found: dict[str, Any] = {}
        for name, outcomes in self.by_metric.items():
            if outcomes[index] is not None:
                found |= METRICS[name].record(outcomes[index])
        return found

    @classmethod
    def of(
        cls, records: Sequence[Mapping[str, Any]], metrics: Iterable[Metric[Any]] | None = None
    ) -> Self:
        """Return the outcomes, of all metrics unless some are given, that `record` stored.

        There is one record per case. Raises an error of `UNREADABLE` for values of other types.
        """
        chosen = METRICS.values() if metrics is None else metrics
        return cls({each.name: [each.read(record) for record in records] for each in chosen})

    @property
    def scores(self) -> list[list[PromptScore]]:
        """The teacher-forced scores of each case's prompts."""
        return self.by_metric.get(TeacherForced.name, [])

    def apart(self) -> list[Self]:
        """Return the outcomes of each case alone."""
        rows = zip(*self.by_metric.values(), strict=True)
        return [
            type(self)({name: [each] for name, each in zip(self.by_metric, row, strict=True)})
            for row in rows
        ]

    def extend(self, other: Outcomes) -> None:
        """Add the outcomes of further cases."""
        for name, outcomes in other.by_metric.items():
            self.by_metric.setdefault(name, []).extend(outcomes)


def prepared_metrics(cases: Sequence[Case], settings: EvalSettings) -> list[Metric[Any]]:
    """Return the metrics that a run with these settings includes, set up for its cases."""
    found = (metric.prepared(cases, settings) for metric in METRICS.values())
    return [metric for metric in found if metric is not None]


def score_metrics(
    metrics: Sequence[Metric[Any]], edited: EditedModel, cases: Sequence[Case], first: int = 0
) -> Outcomes:
    """Return the outcomes of all metrics on cases; those on likelihoods share forward passes."""
    forced = [metric for metric in metrics if isinstance(metric, LikelihoodMetric)]
    found = dict(zip((m.name for m in forced), score_together(forced, edited, cases), strict=True))
    for metric in metrics:
        if metric.name not in found:
            found[metric.name] = list(metric.score(edited, cases, first))
    return Outcomes({metric.name: found[metric.name] for metric in metrics})


def comparison_tables() -> dict[str, list[str]]:
    """Return the names of scores that are shown side by side for several runs, by heading."""
    found: dict[str, list[str]] = {}
    for metric in METRICS.values():
        for title, names in metric.comparison.items():
            found.setdefault(title, []).extend(names)
    return found


def read_scores(summary: Mapping[str, Any]) -> dict[str, Score]:
    """Return the scores of a `summary.json` by name, without those under `before`."""
    units = {name: unit for metric in METRICS.values() for name, unit in metric.units.items()}
    scores = {n: s for n, s in summary.items() if n not in NO_SCORES}
    found = {name: Score.model_validate(score) for name, score in scores.items()}
    return {name: in_unit(units.get(name, "share"), score) for name, score in found.items()}
