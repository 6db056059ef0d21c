"""Advice after a run of edits: in one line, what it did too little or too much, and what to change.

    the search stopped short                    more steps, or a larger clamp
    failed, though the search did not           the settings that restrain the weights, loosened
    neighbours lost                             the same settings, tightened, or a smaller clamp
    paraphrases behind the edited prompts       more context prefixes, or another position

Everything is read off the scores, the end of the target search and the method's settings. A search
that stopped short is named even where the edit took, since its target does not hold everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errata.core.text import counted
from errata.experiments.edit_plan import EditPlan
from errata.methods import Method
from errata.metrics.prompts import PROMPT_KINDS
from errata.metrics.scores import Score

LOST = 0.05
"""Fall of the neighbours' score, as a share, from which they are lost. ROME as published loses 2.7
points on GPT-2 XL and 4.1 on GPT-J (arXiv 2202.05262, table 4): a smaller fall is usual."""
BEHIND = 0.2
"""Distance of paraphrases from the edited prompts, as a share, from which they are lost: twice that
of MEMIT with 10,000 facts, 98.9 against 88.6 % (arXiv 2210.07229, GPT-J)."""
MEASURES = ("", "_tokens", "_accuracy")
"""Endings of the names of scores; prompts are compared by the first that both sides have."""
OPPOSITE = {"smaller": "larger", "larger": "smaller"}
LISTED = 10
"""Requests whose numbers are listed."""

Summary = Mapping[str, Score]


def advise(
    said: Sequence[bool],
    short: Sequence[int] | None,
    before: Summary,
    after: Summary,
    method: Method,
    plan: EditPlan,
) -> str | None:
    """Return the advice on a run, without a full stop; None where all is well.

    `said` is whether the edited model gives each new answer, `short` the indices of the requests
    whose target search stopped short (None: not known, or the method searches no targets),
    `before` and `after` are the scores of the run.
    """
    settings = method.model_dump()
    failed = [index for index, answer in enumerate(said) if not answer]
    together = plan.sizes(len(said))[0] > 1
    found = (
        *_failures(len(said), failed, short, method),
        *_short_searches(len(said), failed, short or (), settings),
        *_weak_weights(failed, short, method, settings, together),
        *_lost_neighbours(before, after, method, settings, together),
        *_lost_paraphrases(after, settings),
    )
    return "; ".join(found) or None


def _failures(
    count: int, failed: Sequence[int], short: Sequence[int] | None, method: Method
) -> Iterator[str]:
    """Yield how many edits failed, and what to try where nothing is known of the search."""
    if failed:
        share = (
            f"{len(failed)} of {counted(count, 'edit')} failed: another answer is still likelier"
        )
        ways = _ways(*method.remedies(), "another --method")
        yield f"{share}; try {ways}" if short is None else share


def _short_searches(
    count: int, failed: Sequence[int], short: Sequence[int], settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what lets a search go on, if one stopped before its target held in every context."""
    if not short:
        return
    listed = ", ".join(str(index + 1) for index in short[:LISTED])
    listed += ", …" if len(short) > LISTED else ""
    search = settings["search"]
    steps = max(search["steps"], search.get("max_steps") or 0)
    ways = _ways(f"--max-steps above {steps}", _change(settings, "a larger", "search", "clamp"))
    yield (
        f"the search stopped short for {len(short)} of {counted(count, 'target')} ({listed}), "
        f"which do not hold in every context: try {ways}"
    )


def _weak_weights(
    failed: Sequence[int],
    short: Sequence[int] | None,
    method: Method,
    settings: Mapping[str, Any],
    together: bool,
) -> Iterator[str]:
    """Yield what makes the weights say more, if edits failed whose target the search reached."""
    weak = [] if short is None else [index for index in failed if index not in short]
    if not weak:
        return
    ways = _ways(
        *(_change(settings, f"a {way}", name) for name, way in method.restraints.items()),
        *_smaller_batches(method, together),
        "other --blocks",
    )
    targets = counted(len(weak), "target")
    yield f"the search reached {targets} that the edited weights do not give: try {ways}"


def _lost_neighbours(
    before: Summary,
    after: Summary,
    method: Method,
    settings: Mapping[str, Any],
    together: bool,
) -> Iterator[str]:
    """Yield what makes an edit gentler, if neighbours fell by `LOST` and below the interval."""
    pair = _pair(before, PROMPT_KINDS[2], after, PROMPT_KINDS[2])
    if pair is None or not _is_below(pair[1], pair[0], LOST):
        return
    ways = _ways(
        *(_change(settings, f"a {OPPOSITE[w]}", name) for name, w in method.restraints.items()),
        "the second moment (omit --no-second-moment)" * (settings.get("second_moment") is False),
        _change(settings, "a smaller", "search", "clamp"),
        *_smaller_batches(method, together),
        "other --blocks",
    )
    yield f"neighbours lost, {_percent(pair[0])} to {_percent(pair[1])}: try {ways}"


def _lost_paraphrases(after: Summary, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes an edit general, if paraphrases are `BEHIND` the edited prompts."""
    pair = _pair(after, PROMPT_KINDS[0], after, PROMPT_KINDS[1])
    if pair is None or not _is_below(pair[1], pair[0], BEHIND):
        return
    ways = _ways(
        "more context prefixes (--prefix-lengths)" * ("contexts" in settings),
        "another --position" * ("position" in settings),
        "other --blocks",
    )
    behind = f"{_percent(pair[1])} against {_percent(pair[0])} of the edited prompts"
    yield f"paraphrases lost, {behind}: try {ways}"


def _pair(one: Summary, kind: str, other: Summary, its: str) -> tuple[Score, Score] | None:
    """Return the scores of two kinds of prompt, by the first measure that both have."""
    for ending in MEASURES:
        if kind + ending in one and its + ending in other:
            return one[kind + ending], other[its + ending]
    return None


def _is_below(score: Score, other: Score, distance: float) -> bool:
    """Whether a score lies below the other's interval, and by more than `distance`.

    The interval alone would be exceeded by next to nothing over thousands of prompts, the
    distance alone by chance over a few.
    """
    return score.value < min(other.low, other.value - distance)


def _smaller_batches(method: Method, together: bool) -> tuple[str, ...]:
    if not together:
        return ()
    alone = method.batch_limit == 1
    return ("each fact alone (--batch-size 1)" if alone else "smaller batches (--batch-size)",)


def _change(settings: Mapping[str, Any], change: str, *path: str) -> str:
    """Return a change of a setting by its flag, with its present value; "" for none such."""
    value: Any = settings
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    flag = f"--{path[-1].replace('_', '-')}"
    return "" if value is None else f"{change} {flag} (it is {value:g})"


def _ways(*ways: str) -> str:
    """Return alternatives as a list, those that are empty left out."""
    given = [way for way in ways if way]
    return " or ".join(filter(None, (", ".join(given[:-1]), *given[-1:])))


def _percent(score: Score) -> str:
    return f"{100 * score.value:.0f} %"
