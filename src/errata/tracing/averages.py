"""Averages of causal traces over facts, by what a token is to its prompt.

The indirect effect of a state is the answer's probability with it restored less that with
nothing restored. Per fact it is averaged over the tokens of a role, then over facts, with a 95 %
interval over facts (arXiv 2202.05262, figures 2 and 3).

Differs from kmeng01/rome: each token has one role. A subject of one token is a last subject
token, not also a first one; a single token behind the subject is the last token, not also a
following one; and what ends prompt and subject at once is a last subject token.
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
"""Blocks that a recommendation names: published settings edit five or six."""
RESAMPLES = 2000


def role_of(token: int, subject: tuple[int, int], length: int) -> str | None:
    """Return what a token is to its prompt; None for those before the subject."""
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
    """Indirect effects by kind, role and block."""

    blocks: int
    facts: int
    high: Score
    """The answers' probability without corruption."""
    low: Score
    """With nothing restored."""
    effects: dict[Kind, dict[str, list[Score]]]
    """Per kind and role, one score a block; roles that no fact has are absent."""

    @property
    def total(self) -> float:
        """What corruption takes away."""
        return self.high.value - self.low.value

    def values(self, kind: Kind, end: str = "value") -> Array:
        """Return the effects, or an `end` of their intervals: (roles, blocks), NaN where absent."""
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
    """Average traces of one model; all have the same kinds and blocks."""
    if not traces:
        raise ErrataError(
            "there is no fact to average over", "does the model know any fact of this dataset?"
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
    """Return each fact's mean effect over its tokens of a role: (facts that have one, blocks)."""
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
    """Which blocks to edit by a trace, and what speaks for them."""

    peak: int
    """The block around which restored MLPs give most of the answer back."""
    blocks: tuple[int, ...]
    """The blocks around it, for methods that edit several."""
    effect: Score
    """The effect at the peak."""
    share: float | None
    """In how many of the resampled sets of facts the peak is there; None for a single fact."""
    rivals: dict[int, float]
    """Other blocks at which it is in at least one of twenty."""
    window: int
    facts: int

    def as_json(self) -> dict[str, Any]:
        """Return the blocks and the evidence."""
        return {**self._asdict(), "effect": self.effect.as_json(), "blocks": list(self.blocks)}

    @property
    def evidence(self) -> str:
        """What speaks for it, in a sentence."""
        rivals = ", ".join(f"block {b} in {share:.0%}" for b, share in self.rivals.items())
        said = (
            f"restoring {self.window} MLPs around block {self.peak} at the subject's last token "
            f"gives back {self.effect}"
        )
        if self.share is None:
            return said
        said += f"; of {RESAMPLES:,} resampled sets of these facts the peak is there "
        return said + f"in {self.share:.0%}" + (f", elsewhere: {rivals}" if rivals else "")


def nothing_lost(traces: Sequence[Trace]) -> str | None:
    """Return, in words, that corruption did not hurt the answers, so that nothing comes back.

    That is so where the total effect is not above 0, or its interval (over facts, over samples
    for a single one) is not. None where it hurt them.
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
        f"corruption did not clearly hurt the answer: its probability is {probability(high, 3)} "
        f"clean, {probability(low, 3)} corrupted, a loss of {loss.value:z.3f}{ends}; so nothing "
        "can be located by what brings it back"
    )


def _high(trace: Trace) -> float:
    return trace.high


def _low(trace: Trace) -> float:
    return float(trace.low.mean())


def recommend(traces: Sequence[Trace]) -> Recommendation | None:
    """Recommend blocks to edit: the window of the peak MLP effect at the subject's last token.

    None where corruption did not hurt the answers (see `nothing_lost`).
    """
    if not traces or "mlp" not in traces[0].kinds:
        raise ErrataError("blocks are recommended by the trace of MLPs", "let --kinds include mlp")
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
    """Return, per block, in how many of the resampled sets of facts the peak is there."""
    count, random = len(rows), np.random.default_rng(0)
    peaks = [rows[random.integers(0, count, count)].mean(0).argmax() for _ in range(RESAMPLES)]
    return np.bincount(peaks, minlength=rows.shape[1]) / RESAMPLES
