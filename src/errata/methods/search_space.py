"""`Dial`: one setting that a method can be calibrated by, with the range to search.

A method lists its dials in `Method.search_space`. Blocks are no dials: which ones are worth
trying depends on the model (see `experiments.calibration`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple


class Dial(NamedTuple):
    """A setting and the values to search: a range, on a log or linear scale, or a few choices."""

    name: str
    """The setting; of nested settings with a dot, as in `search.clamp`."""
    kind: Literal["log", "linear", "choice"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, Any]:
        """Two values that differ as much as possible."""
        return (self.choices[0], self.choices[-1]) if self.choices else (self.low, self.high)

    def nearest(self, value: Any) -> Any:
        """Return the permitted value nearest to `value`, the first choice for one of no order.

        For a setting that is not used (None) it is the middle of the range.
        """
        if value is None and self.kind != "choice":
            log = self.kind == "log"
            return (self.low * self.high) ** 0.5 if log else (self.low + self.high) / 2
        if self.kind != "choice":
            return min(max(float(value), self.low), self.high)
        if value in self.choices or not isinstance(value, int | float):
            return value if value in self.choices else self.choices[0]
        return min(self.choices, key=lambda choice: abs(choice - value))


def log(name: str, low: float, high: float) -> Dial:
    """Return a dial with a range on a log scale."""
    return Dial(name, "log", low, high)


def choice(name: str, *choices: Any) -> Dial:
    """Return a dial with a few choices."""
    return Dial(name, "choice", choices=choices)


def nested(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return values by dotted name as nested settings."""
    found: dict[str, Any] = {}
    for name, value in values:
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def value_at(settings: dict[str, Any], name: str) -> Any:
    """Return the value of a dotted name in nested settings, None for one that is not recorded."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part)
    return value
