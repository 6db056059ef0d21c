"""The figures of a matrix, from what its pieces hold: every one with a 95 % interval."""

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
"""The four models: as it was, tuned only, edited only, edited and then tuned."""

Told = Mapping[str, Any]
"""What one model said: see `measure`."""


@dataclass(frozen=True)
class Configuration:
    """One cell of the matrix, its seeds together."""

    method: str
    edits: int
    tuning: str
    seeds: tuple[int, ...]
    blocks: tuple[int, ...]
    told: Mapping[str, Sequence[Told]]
    """What each of the four models said, per seed."""
    moves: Sequence[Sequence[Mapping[str, list[float]]]]
    """Per seed and block: see `measure.displacement`."""

    @property
    def name(self) -> str:
        """The configuration in words."""
        return f"{self.method}, {self.edits} edits, {self.tuning}"

    def outcomes(self, state: str, kind: str = "efficacy") -> Outcomes:
        """Return, per edit, whether it works, by seed."""
        return [
            [bool(told["edits"][i][kind][0]) for told in self.told[state]]
            for i in range(self.edits)
        ]

    def shares(self, state: str, kind: str) -> list[list[bool]]:
        """Return, per edit, the outcomes of its prompts of a kind, seeds together."""
        return [
            [hit for told in self.told[state] for hit in told["edits"][i][kind]]
            for i in range(self.edits)
        ]

    def said(self, state: str) -> list[list[bool]]:
        """Return, per edit, whether the new target is what the model says."""
        return [[told["edits"][i]["said"] for told in self.told[state]] for i in range(self.edits)]

    def probabilities(self, state: str) -> list[float]:
        """Return, per edit, P(new), the mean over seeds."""
        return [
            sum(told["edits"][i]["p_new"] for told in self.told[state]) / len(self.told[state])
            for i in range(self.edits)
        ]

    def classes(self) -> list[list[str]]:
        """Return, per edit, its class by seed."""
        return [
            [class_of(b, a) for b, a in zip(before, after, strict=True)]
            for before, after in zip(
                self.outcomes("edited"), self.outcomes("edited_tuned"), strict=True
            )
        ]

    @cached_property
    def figures(self) -> dict[str, Score]:
        """All figures by name."""
        found = class_shares(self.outcomes("edited"), self.outcomes("edited_tuned"))
        readings: dict[str, Callable[[str], list[list[bool]]]] = {
            **{kind: partial(self.shares, kind=kind) for kind in PROMPT_KINDS},
            "accuracy": self.said,
        }
        for kind, read in readings.items():
            then, now = read("edited"), read("edited_tuned")
            both = [(_mean(b), _mean(a)) for b, a in zip(then, now, strict=True) if b and a]
            lost = decay([b for b, _ in both], [a for _, a in both])
            _put(found, "decay" if kind == "efficacy" else f"{kind}_decay", lost)
            for state in STATES:
                _put(found, f"{kind}_{state}", grouped_share(read(state)))
        for state in STATES:
            self._elsewhere(found, state)
        return found

    def _elsewhere(self, found: dict[str, Score], state: str) -> None:
        """Add what one of the models says about all that was not edited."""
        told = self.told[state]
        controls = range(len(told[0]["controls"]))
        for figure in ("known", "said"):
            groups = [[each["controls"][i][figure] for each in told] for i in controls]
            _put(found, f"unedited_{figure}_{state}", grouped_share(groups))
        if "perplexity" in told[0]:
            scores = [each["perplexity"] for each in told]
            found[f"perplexity_{state}"] = Amount(
                **{
                    end: _mean([score[end] for score in scores]) for end in ("value", "low", "high")
                },
                n=scores[0]["n"],
            )
        for task, first in told[0].get("tasks", {}).items():
            answered = [each["tasks"][task] for each in told]
            for name, outcome in (("accuracy", "right"), ("broken_format", "broken")):
                groups = [[some[i] == outcome for some in answered] for i in range(len(first))]
                _put(found, f"task_{task}_{name}_{state}", grouped_share(groups))

    def displaced(self) -> dict[str, list[Score]]:
        """Return per block the mean lengths of both moves, and their cosine, seeds together."""
        found: dict[str, list[Score]] = {"edit": [], "tune": [], "cosine": []}
        for block in range(len(self.moves[0])):
            for name, scores in found.items():
                edits = range(len(self.moves[0][block][name]))
                groups = [[seed[block][name][i] for seed in self.moves] for i in edits]
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
    """Read all configurations of a run, in the order of number, method and tuning."""
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
        told = {
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
                told,
                [cell["displacement"] for cell in seeds],
            )
        )
    return found


def comparisons(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Test every two configurations of one number of edits: do as many edits work after tuning?

    The edits are the same, so the tests are paired; p values are adjusted within a number.
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
    """Return all figures, per configuration, with displacement and tests, for JSON."""
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
