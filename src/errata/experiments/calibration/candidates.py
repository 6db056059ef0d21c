"""Candidate blocks for a calibration: a cheap sweep of edits at single blocks.

A few facts are edited alone at some blocks with a rank-one edit that needs no second moment. The
blocks where these edits score best are tried as the last edited block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core.cost import spread
from errata.data.case import Case
from errata.experiments.block_sweep import Sweep, sweep_blocks
from errata.experiments.calibration.settings import PROBE, Calibration
from errata.experiments.fact_editing import Feedback
from errata.experiments.parts import Parts, json_format
from errata.methods import Method, method_named
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel

if TYPE_CHECKING:
    from errata.experiments.calibration.run import Choices


def candidate_blocks(
    edited: EditedModel,
    cases: Sequence[Case],
    choices: Choices,
    folder: Path,
    feedback: Feedback,
) -> tuple[int, ...] | None:
    """Return the blocks to try as the last edited one, ascending; None where blocks are fixed."""
    if not is_swept(choices.base, choices.fixed):
        return None

    def work() -> list[int]:
        found = _sweep(edited, cases, choices.calibration, folder, feedback)
        ranked = ranking(found)[: choices.calibration.candidates]
        return sorted({*ranked, choices.base.edited_blocks[-1]})

    return tuple(Parts[list[int]](folder, json_format()).one("candidates", work))


def is_swept(base: Method, fixed: Any) -> bool:
    """Whether blocks are to be found: the method edits some, and none are fixed."""
    return bool(base.spans) and "blocks" not in fixed


def swept_blocks(edited: EditedModel, settings: Calibration) -> list[int]:
    """Return the blocks of the sweep: evenly spaced, without the last one, which nothing reads."""
    count = family_of(edited.model).block_count(edited.model)
    most = min(settings.sweep_blocks, max(1, count - 1))
    return sorted({round(i * max(0, count - 2) / max(1, most - 1)) for i in range(most)})


def sweep_cases(cases: Sequence[Case], settings: Calibration) -> list[Case]:
    """Return the facts of the sweep, evenly spaced among all."""
    return spread(cases, min(settings.sweep_facts, len(cases)))


def probe(edited: EditedModel, settings: Calibration) -> Method:
    """Return the method of the sweep, with its context prefixes sampled."""
    method = method_named(PROBE)
    values = method.defaults_for(family_of(edited.model).block_count(edited.model))
    values |= {"second_moment": False, "search": {"steps": settings.sweep_steps}}
    return method.of(values).sampled(edited)


def _sweep(
    edited: EditedModel,
    cases: Sequence[Case],
    settings: Calibration,
    folder: Path,
    feedback: Feedback,
) -> Sweep:
    method = probe(edited, settings)
    methods = {
        block: method.with_values(blocks=(block,)) for block in swept_blocks(edited, settings)
    }
    with feedback.bar("sweep over blocks", "") as progress:
        return sweep_blocks(
            edited, sweep_cases(cases, settings), methods, {}, folder, progress=progress
        )


def ranking(sweep: Sweep) -> list[int]:
    """Return the blocks of a sweep, the best first."""
    name = sweep.criterion
    return sorted(sweep.blocks, key=lambda block: -sweep.blocks[block].summary[name].value)
