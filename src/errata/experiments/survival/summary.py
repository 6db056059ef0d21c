"""The scores of a matrix, from its stored pieces, each with a 95 % interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from errata.experiments.survival.outcomes import (
    Outcomes,
    class_of,
    class_shares,
    decay,
    holm,
    paired_test,
)
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.scores import Amount, Score, grouped_mean, grouped_share, mean

STATES = ("base", "tuned", "edited", "edited_tuned")
"""The four models: base, tuned only, edited only, edited and then tuned."""

Record = Mapping[str, Any]
"""The scores of one model, as returned by `measure.Questions.ask`."""


@dataclass(frozen=True)
class Configuration:
    """One cell of the matrix, with all its seeds."""

    method: str
    edits: int
    tuning: str
    seeds: tuple[int, ...]
    blocks: tuple[int, ...]
    records: Mapping[str, Sequence[Record]]
    """The scores of each of the four models, per seed."""
    displacements: Sequence[Sequence[Mapping[str, list[float]]]]
    """Per seed and block, as returned by `measure.displacement`."""

    @property
    def name(self) -> str:
        """Description of the configuration."""
        return f"{self.method}, {self.edits} edits, {self.tuning}"

    def outcomes(self, state: str, kind: str = "efficacy") -> Outcomes:
        """Return, per edit, whether it works, by seed."""
        return [
            [bool(record["edits"][i][kind][0]) for record in self.records[state]]
            for i in range(self.edits)
        ]

    def shares(self, state: str, kind: str) -> list[list[bool]]:
        """Return, per edit, the outcomes of its prompts of a kind for all seeds."""
        return [
            [hit for record in self.records[state] for hit in record["edits"][i][kind]]
            for i in range(self.edits)
        ]

    def accurate(self, state: str) -> list[list[bool]]:
        """Return, per edit and seed, whether the greedy prediction is the new target."""
        return [
            [record["edits"][i]["said"] for record in self.records[state]]
            for i in range(self.edits)
        ]

    def probabilities(self, state: str) -> list[float]:
        """Return P(new) per edit, averaged over seeds."""
        return [
            _mean([record["edits"][i]["p_new"] for record in self.records[state]])
            for i in range(self.edits)
        ]

    def classes(self) -> list[list[str]]:
        """Return the class of each edit, per seed."""
        return [
            [class_of(b, a) for b, a in zip(before, after, strict=True)]
            for before, after in zip(
                self.outcomes("edited"), self.outcomes("edited_tuned"), strict=True
            )
        ]

    @cached_property
    def figures(self) -> dict[str, Score]:
        """All scores by name."""
        found = class_shares(self.outcomes("edited"), self.outcomes("edited_tuned"))
        readings: dict[str, Callable[[str], list[list[bool]]]] = {
            **{kind: partial(self.shares, kind=kind) for kind in PROMPT_KINDS},
            "accuracy": self.accurate,
        }
        for kind, read in readings.items():
            then, now = read("edited"), read("edited_tuned")
            both = [(_mean(b), _mean(a)) for b, a in zip(then, now, strict=True) if b and a]
            lost = decay([b for b, _ in both], [a for _, a in both])
            _put(found, "decay" if kind == "efficacy" else f"{kind}_decay", lost)
            for state in STATES:
                _put(found, f"{kind}_{state}", grouped_share(read(state)))
        for state in STATES:
            self._add_controls(found, state)
        return found

    def _add_controls(self, found: dict[str, Score], state: str) -> None:
        """Add the scores of one model on control facts, text and tasks."""
        records = self.records[state]
        controls = range(len(records[0]["controls"]))
        for figure in ("known", "said"):
            groups = [[each["controls"][i][figure] for each in records] for i in controls]
            _put(found, f"unedited_{figure}_{state}", grouped_share(groups))
        if "perplexity" in records[0]:
            scores = [each["perplexity"] for each in records]
            found[f"perplexity_{state}"] = Amount(
                **{
                    end: _mean([score[end] for score in scores]) for end in ("value", "low", "high")
                },
                n=scores[0]["n"],
            )
        for task, first in records[0].get("tasks", {}).items():
            answered = [each["tasks"][task] for each in records]
            for name, outcome in (("accuracy", "right"), ("broken_format", "broken")):
                groups = [[some[i] == outcome for some in answered] for i in range(len(first))]
                _put(found, f"task_{task}_{name}_{state}", grouped_share(groups))

    def displaced(self) -> dict[str, list[Score]]:
        """Return the mean displacements per block and their cosine, over all seeds."""
        found: dict[str, list[Score]] = {"edit": [], "tune": [], "cosine": []}
        for block in range(len(self.displacements[0])):
            for name, scores in found.items():
                edits = range(len(self.displacements[0][block][name]))
                groups = [[seed[block][name][i] for seed in self.displacements] for i in edits]
                score = grouped_mean(groups) or mean([0.0])
                assert score is not None
                scores.append(score)
        return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _put(found: dict[str, Score], name: str, score: Score | None) -> None:
    if score is not None:
        found[name] = score


def read_configurations(folder: Path) -> list[Configuration]:
    """Read all configurations of a run, by number of edits, method and tuning."""
    params = _read(folder / "params.json")["matrix"]
    base = _read(folder / "base.json")
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for path in sorted((folder / "configurations").glob("*.json")):
        cell = _read(path)
        cells.setdefault((cell["method"], cell["edits"], cell["tuning"]), []).append(cell)
    order = {
        "method": [m.lower() for m in params["methods"]],
        "tuning": list(params["tunings"]),
    }

    def rank(key: tuple[str, int, str]) -> tuple[int, int, int]:
        method, edits, tuning = key
        return edits, order["method"].index(method.lower()), order["tuning"].index(tuning)

    found = []
    for method, edits, tuning in sorted(cells, key=rank):
        seeds = sorted(cells[method, edits, tuning], key=lambda cell: int(cell["seed"]))
        records = {
            "base": [base] * len(seeds),
            "tuned": [_read(folder / cell["control"]) for cell in seeds],
            "edited": [_read(folder / cell["edited"]) for cell in seeds],
            "edited_tuned": [cell["tuned"] for cell in seeds],
        }
        found.append(
            Configuration(
                method,
                edits,
                tuning,
                tuple(cell["seed"] for cell in seeds),
                tuple(seeds[0]["blocks"]),
                records,
                [cell["displacement"] for cell in seeds],
            )
        )
    return found


def comparisons(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Test all pairs of configurations with one number of edits: equally many working edits?

    The tests are paired over the edits, after tuning; p values are adjusted within one number.
    """
    found: list[dict[str, Any]] = []
    for edits in sorted({each.edits for each in configurations}):
        some = [each for each in configurations if each.edits == edits]
        rows: list[dict[str, Any]] = []
        for i, one in enumerate(some):
            for other in some[i + 1 :]:
                if one.seeds == other.seeds:
                    ours, theirs = one.outcomes("edited_tuned"), other.outcomes("edited_tuned")
                    test, p = paired_test(ours, theirs)
                    difference = _mean([_mean(e) for e in ours]) - _mean([_mean(e) for e in theirs])
                    rows.append(
                        {
                            "edits": edits,
                            "one": f"{one.method} {one.tuning}",
                            "other": f"{other.method} {other.tuning}",
                            "difference": difference,
                            "test": test,
                            "p": p,
                        }
                    )
        for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
            found.append({**row, "p_holm": adjusted})
    return found


def as_json(configurations: Sequence[Configuration]) -> dict[str, Any]:
    """Return all scores per configuration, with displacements and tests, as JSON values."""
    return {
        "configurations": [
            {
                "method": each.method,
                "edits": each.edits,
                "tuning": each.tuning,
                "seeds": list(each.seeds),
                "blocks": list(each.blocks),
                **{name: score.model_dump() for name, score in each.figures.items()},
                "displacement": {
                    name: [score.model_dump() for score in scores]
                    for name, scores in each.displaced().items()
                },
            }
            for each in configurations
        ],
        "tests": comparisons(configurations),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
