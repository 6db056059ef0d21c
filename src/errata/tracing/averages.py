"""Averages of causal traces over facts, by token role.

The indirect effect of a state is the probability of the answer with the state restored minus that
without. It is averaged over the tokens of a role within each fact, then over facts, with a 95 %
interval over facts (arXiv 2202.05262, figures 2 and 3).

Differs from kmeng01/rome: each token has one role. The token of a single-token subject is a last
subject token, not also a first one; a single token after the subject is the last token, not also
a following one; a token that ends both prompt and subject is a last subject token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from errata.core.errors import ErrataError
from errata.core.text import probability
from errata.metrics.scores import Score, intervals, mean
from errata.tracing.settings import Kind, window_around
from errata.tracing.trace import Trace

Array = NDArray[np.float64]

LAST_SUBJECT = "last subject token"
LAST = "last token"
ROLES = (
    "first subject token",
    "middle subject tokens",
    LAST_SUBJECT,
    "first token after",
    "later tokens after",
    LAST,
)
EDITED_AT_MOST = 5
"""Maximum number of recommended blocks: published settings edit five or six."""
RESAMPLES = 2000


def role_of(token: int, subject: tuple[int, int], length: int) -> str | None:
    """Return the role of a token in its prompt; None before the subject."""
    first, end = subject
    if token < first:
        return None
    if token < end:
        return LAST_SUBJECT if token == end - 1 else ROLES[0 if token == first else 1]
    if token == length - 1:
        return LAST
    return ROLES[3 if token == end else 4]


@dataclass(frozen=True)
class Averages:
    """Average indirect effects by kind, role and block."""

    blocks: int
    facts: int
    high: Score
    """Mean probability of the answer in the clean runs."""
    low: Score
    """Mean probability of the answer in the corrupted runs."""
    effects: dict[Kind, dict[str, list[Score]]]
    """Per kind and role, one score per block; roles that no fact has are absent."""

    @property
    def total(self) -> float:
        """The total effect: `high` minus `low`."""
        return self.high.value - self.low.value

    def values(self, kind: Kind, end: str = "value") -> Array:
        """Return the effects or an interval bound (`end`): (roles, blocks), NaN if absent."""
        nothing = [float("nan")] * self.blocks
        rows = [self.effects[kind].get(role) for role in ROLES]
        return np.array([[getattr(s, end) for s in row] if row else nothing for row in rows])

    def as_json(self) -> dict[str, Any]:
        """Return all scores as {value, low, high, n}."""
        return {
            "facts": self.facts,
            "blocks": self.blocks,
            "high": self.high.as_json(),
            "low": self.low.as_json(),
            "total_effect": self.total,
            "effects": {
                kind: {role: [s.as_json() for s in row] for role, row in roles.items()}
                for kind, roles in self.effects.items()
            },
        }


def average(traces: Sequence[Trace]) -> Averages:
    """Average traces of one model, which must have the same kinds and blocks.

    Raises `ErrataError` without traces."""
    if not traces:
        raise ErrataError(
            "there are no facts to average over", "does the model know any fact of this dataset?"
        )
    high = mean([trace.high for trace in traces])
    low = mean([float(trace.low.mean()) for trace in traces])
    assert high is not None and low is not None
    effects: dict[Kind, dict[str, list[Score]]] = {}
    for kind in traces[0].kinds:
        for role in ROLES:
            rows = effects_at(traces, kind, role)
            if len(rows):
                effects.setdefault(kind, {})[role] = _scores(rows)
    return Averages(traces[0].blocks, len(traces), high, low, effects)


def effects_at(traces: Sequence[Trace], kind: Kind, role: str) -> Array:
    """Return the mean effect over the tokens of a role: (facts with that role, blocks)."""
    rows = []
    for trace in traces:
        length = len(trace.tokens)
        held = [
            index
            for index, token in enumerate(trace.places)
            if role_of(token, trace.subject, length) == role
        ]
        if held:
            rows.append(trace.effect(kind)[held].mean(0))
    return np.array(rows)


def _scores(rows: Array) -> list[Score]:
    means, (lows, highs) = rows.mean(0), intervals(rows)
    return [
        Score(value=float(value), low=float(low), high=float(high), n=len(rows))
        for value, low, high in zip(means, lows, highs, strict=True)
    ]


class Recommendation(NamedTuple):
    """Recommended blocks to edit, with the evidence from a trace."""

    peak: int
    """The block around which restoring MLPs has the largest effect."""
    blocks: tuple[int, ...]
    """The window around the peak, for methods that edit several blocks."""
    effect: Score
    """The effect at the peak."""
    share: float | None
    """Share of bootstrap samples with the same peak; None for a single fact."""
    rivals: dict[int, float]
    """Other peaks with a share of at least 5 %, with that share."""
    window: int
    facts: int

    def as_json(self) -> dict[str, Any]:
        """Return the recommendation as JSON values."""
        return {**self._asdict(), "effect": self.effect.as_json(), "blocks": list(self.blocks)}

    @property
    def evidence(self) -> str:
        """The evidence in one sentence."""
        rivals = ", ".join(f"block {b} in {share:.0%}" for b, share in self.rivals.items())
        sentence = (
            f"restoring {self.window} MLPs around block {self.peak} at the subject's last token "
            f"recovers {self.effect}"
        )
        if self.share is None:
            return sentence
        sentence += f"; the peak is there in {self.share:.0%} of {RESAMPLES:,} bootstrap samples"
        return sentence + (f", elsewhere: {rivals}" if rivals else "")


def nothing_lost(traces: Sequence[Trace]) -> str | None:
    """Return a message if corruption did not reduce the answer's probability, else None.

    That is the case unless the total effect and its interval (over facts; over samples for a
    single fact) are above 0.
    """
    lone = traces[0] if len(traces) == 1 else None
    losses = lone.high - lone.low if lone else [trace.total_effect for trace in traces]
    loss = mean([float(value) for value in losses])
    assert loss is not None
    if loss.low > 0:
        return None
    high, low = (float(np.mean([f(t) for t in traces])) for f in (_high, _low))
    ends = "" if loss.alone else f" [{loss.low:z.3f}, {loss.high:z.3f}]"
    return (
        f"corruption did not clearly reduce the answer's probability: {probability(high, 3)} "
        f"clean, {probability(low, 3)} corrupted, a total effect of {loss.value:z.3f}{ends}; "
        "so causal tracing cannot locate anything"
    )


def _high(trace: Trace) -> float:
    return trace.high


def _low(trace: Trace) -> float:
    return float(trace.low.mean())


def recommend(traces: Sequence[Trace]) -> Recommendation | None:
    """Recommend blocks to edit: the window of the peak MLP effect at the subject's last token.

    None if corruption did not reduce the answer's probability (see `nothing_lost`).
    """
    if not traces or "mlp" not in traces[0].kinds:
        raise ErrataError("a recommendation needs a trace of the MLPs", "include mlp in --kinds")
    if nothing_lost(traces) is not None:
        return None
    rows, window = effects_at(traces, "mlp", LAST_SUBJECT), traces[0].window
    peak, shares = int(rows.mean(0).argmax()), _peaks(rows) if len(rows) > 1 else None
    often = np.flatnonzero(shares >= 0.05) if shares is not None else ()
    width = min(EDITED_AT_MOST, window)
    return Recommendation(
        peak=peak,
        blocks=tuple(window_around(peak, width, rows.shape[1])),
        effect=_scores(rows)[peak],
        share=None if shares is None else float(shares[peak]),
        rivals={int(b): float(shares[b]) for b in often if b != peak} if shares is not None else {},
        window=window,
        facts=len(rows),
    )


def _peaks(rows: Array) -> Array:
    """Return the share of bootstrap samples with the peak at each block: (blocks,)."""
    count, random = len(rows), np.random.default_rng(0)
    peaks = [rows[random.integers(0, count, count)].mean(0).argmax() for _ in range(RESAMPLES)]
    return np.bincount(peaks, minlength=rows.shape[1]) / RESAMPLES
