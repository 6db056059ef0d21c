"""Settings of a calibration. No torch here."""

from __future__ import annotations

from pydantic import Field

from errata.core.settings import LARGEST_NUMPY_SEED, Settings

PROBE = "rome"
"""The method that edits one block alone in the sweep that finds candidate blocks."""
FLOOR = 0.95
"""Efficacy that a chosen point must have, where one has it."""
TIE = 0.005
"""Difference of harmonic means below which the smaller KL decides."""
RULE = (
    "of the points on the Pareto front with an efficacy of at least 95 % (or the highest that was "
    "reached), the one with the highest harmonic mean of efficacy, paraphrase and neighbourhood; "
    "within half a point the one with the smallest KL divergence on text"
)


class Calibration(Settings):
    """How much is tried."""

    trials: int = Field(36, ge=1)
    """Settings that are tried."""
    per_search: int = Field(6, ge=1)
    """Trials that share one target search and differ only in settings that are cheap to change."""
    candidates: int = Field(3, ge=1)
    """Blocks of the sweep at which edits are tried."""
    sweep_facts: int = Field(4, ge=1)
    """Facts that are edited at each block of the sweep."""
    sweep_blocks: int = Field(8, ge=1)
    """Blocks of the sweep, evenly spaced."""
    sweep_steps: int = Field(10, ge=1)
    """Steps of the sweep's target search."""
    sampler_seed: int = Field(0, ge=0, le=LARGEST_NUMPY_SEED)
    """Seed of the optimiser."""
