"""Advice after a run of edits: in one line, what it did too little or too much, and what to change.

    failed, target not reached by the search    more steps, or a larger clamp
    failed, target reached by the search        the settings that restrain the weights, loosened
    neighbours lost                             the same settings, tightened, or a smaller clamp
    paraphrases behind the edited prompts       more context prefixes, or another position

Everything is read off scores, losses of the target search and the method's settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errata.core.text import counted
from errata.experiments.edit_plan import EditPlan
from errata.methods import Method
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.scores import Score

LIKELY = 0.5
"""Probability per target token from which a search has reached its target."""
BEHIND = 0.2
"""Distance of paraphrases from the edited prompts, as a share, from which advice is given."""
MEASURES = ("", "_tokens", "_accuracy")
"""Endings of the names of scores; prompts are compared by the first that both sides have."""
OPPOSITE = {"smaller": "larger", "larger": "smaller"}

Summary = Mapping[str, Score]


def reached_by(losses: Sequence[float], count: int) -> list[bool] | None:
    """Return whether the target search reached the target of each of `count` requests.

    A loss is the mean NLL per token in nats plus penalties, so that exp(-loss) is at most the
    geometric mean of the tokens' probabilities. None where there is not one loss per request: the
    method searches no targets.
    """
    return [math.exp(-loss) >= LIKELY for loss in losses] if len(losses) == count else None


def advise(
    said: Sequence[bool],
    reached: Sequence[bool] | None,
    before: Summary,
    after: Summary,
    method: Method,
    plan: EditPlan,
) -> str | None:
    """Return the advice on a run, without a full stop; None where all is well.

    `said` is whether the edited model gives each new answer, `reached` what `reached_by` returned,
    `before` and `after` are the scores of the run.
    """
    settings = method.model_dump()
    found = (
        *_failures(said, reached, method, settings, plan),
        *_lost_neighbours(before, after, method, settings),
        *_lost_paraphrases(after, settings),
    )
    return "; ".join(found) or None


def _failures(
    said: Sequence[bool],
    reached: Sequence[bool] | None,
    method: Method,
    settings: Mapping[str, Any],
    plan: EditPlan,
) -> Iterator[str]:
    """Yield what makes an edit stronger, by what became of the failed ones."""
    failed = [index for index, answer in enumerate(said) if not answer]
    if not failed:
        return
    share = (
        f"{len(failed)} of {counted(len(said), 'edit')} failed: another answer is still likelier"
    )
    if reached is None:
        yield f"{share}; try {_ways(*method.remedies(), 'another --method')}"
        return
    missed = sum(not reached[index] for index in failed)
    yield share
    if missed:
        steps = _change(settings, "more", "search", "steps")
        clamp = _change(settings, "a larger", "search", "clamp")
        yield f"the search did not reach {counted(missed, 'target')}: try {_ways(steps, clamp)}"
    if missed < len(failed):
        together = plan.sizes(len(said))[0] > 1
        ways = (
            *(_change(settings, f"a {way}", name) for name, way in method.restraints.items()),
            "each fact alone (--batch-size 1)" * (together and method.batch_limit == 1),
            "smaller batches (--batch-size)" * (together and method.batch_limit is None),
            "other --blocks",
        )
        targets = counted(len(failed) - missed, "target")
        yield f"the search reached {targets}, the edited weights did not: try {_ways(*ways)}"


def _lost_neighbours(
    before: Summary, after: Summary, method: Method, settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what makes an edit gentler, if neighbours fell below the interval before."""
    pair = _pair(before, PROMPT_KINDS[2], after, PROMPT_KINDS[2])
    if pair is None or pair[1].value >= pair[0].low:
        return
    ways = (
        *(_change(settings, f"a {OPPOSITE[w]}", name) for name, w in method.restraints.items()),
        "the second moment (omit --no-second-moment)" * (settings.get("second_moment") is False),
        _change(settings, "a smaller", "search", "clamp"),
        "other --blocks",
    )
    yield f"neighbours lost, {_percent(pair[0])} to {_percent(pair[1])}: try {_ways(*ways)}"


def _lost_paraphrases(after: Summary, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes an edit general, if paraphrases are far behind the edited prompts."""
    pair = _pair(after, PROMPT_KINDS[0], after, PROMPT_KINDS[1])
    if pair is None or pair[1].value >= min(pair[0].low, pair[0].value - BEHIND):
        return
    ways = (
        "more context prefixes (--prefix-lengths)" * ("contexts" in settings),
        "another --position" * ("position" in settings),
        "other --blocks",
    )
    behind = f"{_percent(pair[1])} against {_percent(pair[0])} of the edited prompts"
    yield f"paraphrases lost, {behind}: try {_ways(*ways)}"


def _pair(one: Summary, kind: str, other: Summary, its: str) -> tuple[Score, Score] | None:
    """Return the scores of two kinds of prompt, by the first measure that both have."""
    for ending in MEASURES:
        if kind + ending in one and its + ending in other:
            return one[kind + ending], other[its + ending]
    return None


def _change(settings: Mapping[str, Any], change: str, *path: str) -> str:
    """Return a change of a setting by its flag, with its present value; "" for none such."""
    value: Any = settings
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    flag = f"--{path[-1].replace('_', '-')}"
    return "" if value is None else f"{change} {flag} (it is {value:g})"


def _ways(*ways: str) -> str:
    return " or ".join(way for way in ways if way)


def _percent(score: Score) -> str:
    return f"{100 * score.value:.0f} %"
