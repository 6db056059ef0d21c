"""The cost of a calibration, estimated from short samples of its parts on this machine."""

from __future__ import annotations

from errata.core.cost import Cost, least_seconds, total
from errata.data.corpus import read_corpus
from errata.experiments.calibration.candidates import is_swept, swept_blocks
from errata.experiments.calibration.facts import Facts
from errata.experiments.calibration.measure import DRIFTS
from errata.experiments.calibration.run import Choices, drift_texts
from errata.experiments.calibration.space import blocks_needed, space_of
from errata.experiments.costs.editing import edit_costs, second_moment_cost
from errata.methods.moments import moments_wanted
from errata.metrics.text_drift import TextDrift
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel
from errata.statistics.store import Store

USUAL_STEPS = 20
"""Steps of a target search by default."""


def calibration_costs(
    edited: EditedModel, facts: Facts, choices: Choices, store: Store
) -> list[Cost]:
    """Return the costs of the sweep, the second moments, the trials and the final scores.

    Nothing is edited or stored. Raises `ErrataError` where second moments are missing and no
    corpus is named.
    """
    settings, base = choices.calibration, choices.base
    swept = is_swept(base, choices.fixed)
    candidates = _guessed(edited, choices) if swept else None
    needed = blocks_needed(base, candidates)
    found = _moment_costs(edited, choices, needed, store)
    cases = list(facts.chosen_on)
    *work, scoring = edit_costs(edited, base, cases, choices.plan)
    space = space_of(base, choices.fixed, candidates, {})
    per_search = space.per_search(settings.per_search)
    searches = -(-settings.trials // per_search) if len(space.cheap) < len(space.dials) else 1
    search = [cost for cost in work if cost.what == "search"] or work
    solve = [cost for cost in work if cost not in search]
    trial = [*solve, scoring._replace(seconds=scoring.seconds / 2, flops=scoring.flops / 2)]
    drift = TextDrift.of(edited, drift_texts(edited, choices))
    alone = min(DRIFTS, -(-len(cases) // (choices.plan.batch_size or len(cases))))
    seconds = sum(cost.seconds for cost in trial) + alone * least_seconds(
        lambda: drift.of_now(edited), rounds=1
    )
    if swept:
        found.append(_sweep_cost(edited, choices, total(search), scoring, len(cases)))
    held = len(facts.held_out) / len(cases)
    return [
        *found,
        *(_times(cost, searches, "target searches") for cost in search),
        Cost(
            "trials",
            settings.trials * sum(cost.flops for cost in trial),
            settings.trials * seconds,
            max(cost.memory for cost in trial),
            0,
        ),
        Cost(
            "held-out facts",
            held * sum(cost.flops for cost in (*work, scoring)),
            held * sum(cost.seconds for cost in (*work, scoring)),
            max(cost.memory for cost in (*work, scoring)),
            0,
        ),
    ]


def _guessed(edited: EditedModel, choices: Choices) -> list[int]:
    """Return as many blocks as the sweep will choose; which ones is not known before it."""
    blocks, count = swept_blocks(edited, choices.calibration), choices.calibration.candidates
    return sorted({*blocks[:: max(1, len(blocks) // count)][:count]})


def _moment_costs(
    edited: EditedModel, choices: Choices, blocks: tuple[int, ...], store: Store
) -> list[Cost]:
    wanted = moments_wanted(
        edited, choices.base, store, choices.corpus, choices.tokens, blocks=blocks
    )
    if wanted.corpus is None:
        return []
    text = read_corpus(wanted.corpus)
    missing = store.missing(edited, text, wanted.blocks, tokens=wanted.tokens)
    return [second_moment_cost(edited, text, missing, wanted.tokens)] if missing else []


def _sweep_cost(
    edited: EditedModel, choices: Choices, searching: Cost, scoring: Cost, count: int
) -> Cost:
    """Return the cost of the sweep, scaled from that of searching and scoring `count` facts.

    A search runs the blocks above the edited one, on average half of them.
    """
    settings, depth = choices.calibration, family_of(edited.model).block_count(edited.model)
    blocks, share = swept_blocks(edited, settings), min(settings.sweep_facts, count) / count
    above = max(1, depth - 1 - choices.base.edited_blocks[-1])
    times = settings.sweep_steps / USUAL_STEPS * (depth - 1) / 2 / above
    return Cost(
        "sweep over blocks",
        len(blocks) * share * (times * searching.flops + scoring.flops),
        len(blocks) * share * (times * searching.seconds + scoring.seconds),
        max(searching.memory, scoring.memory),
        0,
    )


def _times(cost: Cost, count: int, what: str) -> Cost:
    return cost._replace(
        what=f"{count} {what}", flops=count * cost.flops, seconds=count * cost.seconds
    )
