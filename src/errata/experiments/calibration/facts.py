"""The facts of a calibration: those that the model knows, split before anything is tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from errata.core.errors import ErrataError
from errata.core.text import counted
from errata.data.case import Case
from errata.metrics.teacher_forced import score_cases
from errata.patches.edited_model import EditedModel


class Facts(NamedTuple):
    """Cases to choose settings on, and cases held out for the final scores."""

    dataset: str
    chosen_on: tuple[Case, ...]
    held_out: tuple[Case, ...]
    dropped: tuple[int, int]
    """Cases of either part that were dropped, because the model prefers another answer."""
    unknown: int
    """Cases without a true answer, of which it is not known whether the model knows them."""

    def lines(self) -> list[str]:
        """Return what was used and what was dropped."""
        first = (
            f"{counted(len(self.chosen_on), 'fact')} of {self.dataset} to choose settings on, "
            f"{len(self.held_out)} held out"
        )
        total = sum(self.dropped)
        lines = [f"{first}; dropped {total} that the model does not know ({self._split()})"]
        if self.unknown:
            lines.append(f"{self.unknown} facts name no true answer and were all used")
        return lines

    def _split(self) -> str:
        return f"{self.dropped[0]} and {self.dropped[1]}"


def split_facts(edited: EditedModel, dataset: str, cases: Sequence[Case], held_out: int) -> Facts:
    """Split cases, the last `held_out` for the final scores, and drop those that are not known.

    Raises `ErrataError` if one part is empty.
    """
    count = len(cases) - held_out
    if count < 1:
        raise ErrataError(
            f"{counted(len(cases), 'case')} cannot be split: {held_out} are to be held out",
            "lower --held-out, or raise --limit",
        )
    known = [known_cases(edited, part) for part in (cases[:count], cases[count:])]
    for part, name in zip(known, ("choose settings on", "hold out"), strict=True):
        if not part:
            raise ErrataError(
                f"the model knows none of the facts to {name}: it prefers the new target each time",
                "name facts that it knows, or more of them: --limit, --held-out",
            )
    return Facts(
        Path(dataset).name,
        tuple(known[0]),
        tuple(known[1]),
        (count - len(known[0]), held_out - len(known[1])),
        sum(case.target_true is None for part in known for case in part),
    )


def known_cases(edited: EditedModel, cases: Sequence[Case]) -> list[Case]:
    """Return the cases whose true answer the model prefers to the new target, or has none."""
    bare = [Case(request=case.request, target_true=case.target_true) for case in cases]
    return [
        case
        for case, (score, *_) in zip(cases, score_cases(edited, bare), strict=True)
        if score.true is None or score.true.nll < score.new.nll
    ]
