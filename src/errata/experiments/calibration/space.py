"""The search space of a calibration: candidate blocks, and the dials that a method declares.

A point is a value for each dial by name. `block` and `span` stand for the last edited block and
the number of blocks below and with it. A dial is cheap when the shared work of a job (the target
search) does not depend on it: which ones are is read off `Method.shared_settings`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.methods import Method
from errata.methods.search_space import Dial, choice, nested, value_at
from errata.statistics.second_moment import SecondMoment

BLOCK, SPAN = "block", "span"
Point = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """The settings that are tried: `base` with values of the dials."""

    base: Method
    dials: tuple[Dial, ...]

    def method(self, point: Point) -> Method:
        """Return the method at a point; raises `ErrataError` for settings that do not fit."""
        values = dict(point)
        given = nested((n, v) for n, v in values.items() if n not in (BLOCK, SPAN))
        if BLOCK in values:
            given["blocks"] = blocks_of(values[BLOCK], values.get(SPAN, 1))
        return type(self.base).of(self.base.merged(self.base.model_dump(), given))

    @property
    def start(self) -> dict[str, Any]:
        """The point nearest to the base settings."""
        settings, found = self.base.model_dump(), {}
        for dial in self.dials:
            if dial.name == BLOCK:
                value: Any = self.base.edited_blocks[-1]
            elif dial.name == SPAN:
                value = len(self.base.edited_blocks)
            else:
                value = value_at(settings, dial.name)
            found[dial.name] = dial.nearest(value)
        return found

    @property
    def cheap(self) -> tuple[str, ...]:
        """Names of the dials on which the shared work does not depend."""
        start, found = self.start, []
        for dial in self.dials:
            ends = [self.method({**start, dial.name: end}).shared_settings() for end in dial.ends]
            if ends[0] == ends[1]:
                found.append(dial.name)
        return tuple(found)

    def per_search(self, most: int) -> int:
        """Return how many trials share a search: `most`, or all cheap points if they are fewer."""
        cheap = [dial for dial in self.dials if dial.name in self.cheap]
        if any(dial.kind != "choice" for dial in cheap):
            return most
        return min(most, math.prod(len(dial.choices) for dial in cheap))

    def as_json(self) -> list[dict[str, Any]]:
        """Return the dials as JSON values."""
        cheap = self.cheap
        return [
            json.loads(json.dumps({**dial._asdict(), "cheap": dial.name in cheap}))
            for dial in self.dials
        ]


def blocks_of(block: int, span: int) -> tuple[int, ...]:
    """Return the `span` consecutive blocks up to `block`, fewer at the bottom of the model."""
    return tuple(range(max(0, block - span + 1), block + 1))


def blocks_needed(base: Method, candidates: Sequence[int] | None) -> tuple[int, ...]:
    """Return every block that a trial may edit, ascending."""
    if candidates is None:
        return base.edited_blocks
    span = max(base.spans)
    return tuple(sorted({each for block in candidates for each in blocks_of(block, span)}))


def space_of(
    base: Method,
    fixed: Mapping[str, Any],
    candidates: Sequence[int] | None,
    moments: Mapping[int, SecondMoment],
) -> Space:
    """Return the search space of a method without what `fixed` (nested settings) sets.

    `candidates` are blocks to try as the last edited one; None: the blocks are fixed.
    """
    other = {a: b for pair in base.alternatives for a, b in (pair, pair[::-1])}
    dials = [
        dial
        for dial in base.search_space(moments)
        if not any(_is_set(fixed, name) for name in (dial.name, other.get(dial.name, dial.name)))
    ]
    if candidates is not None:
        dials.append(choice(BLOCK, *candidates))
        if len(base.spans) > 1:
            dials.append(choice(SPAN, *base.spans))
    return Space(
        base, tuple(dial for dial in dials if dial.ends[0] != dial.ends[1] or dial.name == BLOCK)
    )


def _is_set(fixed: Mapping[str, Any], name: str) -> bool:
    place: Any = fixed
    for part in name.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return False
        place = place[part]
    return True
