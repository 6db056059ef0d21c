"""The preset of a calibration: settings, identity of the model, and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from errata.core.version import __version__
from errata.data.case import cases_digest
from errata.experiments.calibration.choice import Trial
from errata.experiments.calibration.facts import Facts
from errata.experiments.edit_plan import EditPlan
from errata.methods import Method
from errata.methods.preset_files import Evidence, Figure, ModelIdentity, PresetFile
from errata.metrics.scores import Score
from errata.models.identity import versions
from errata.patches.edited_model import EditedModel

if TYPE_CHECKING:
    from errata.experiments.calibration.run import Choices

OF_THE_MACHINE = ("requests_at_once", "memory")
"""Settings that affect speed and memory only."""


def preset_of(
    edited: EditedModel,
    choices: Choices,
    best: Trial,
    method: Method,
    facts: Facts,
    before: Mapping[str, Score],
    after: Mapping[str, Score],
    command: str | None,
) -> PresetFile:
    """Return the preset of the settings that were chosen."""
    assert best.measured is not None
    evidence = Evidence(
        dataset=facts.dataset,
        digest=cases_digest(facts.held_out),
        facts=len(facts.held_out),
        calibrated_on=len(facts.chosen_on),
        plan=plan_line(choices.plan, len(facts.held_out)),
        scores=_figures(after),
        before=_figures(before),
        date=datetime.now(UTC).date().isoformat(),
        versions=versions(),
        command=command,
    )
    return PresetFile(
        model=ModelIdentity.of(edited).named(edited.name),
        method=method.name,
        settings=_settings(method, choices.base),
        scale_free=best.measured.scale_free,
        evidence=evidence,
        source=f"calibrated by errata {__version__}",
    )


def plan_line(plan: EditPlan, count: int) -> str:
    """Return how facts are edited, in words."""
    if plan.batch_size == 1:
        return "each fact alone on the unedited model"
    if plan.batch_size is None or plan.batch_size >= count:
        return f"all {count} facts in one batch"
    return f"batches of {plan.batch_size} facts, each on the unedited model"


def _settings(method: Method, base: Method) -> dict[str, Any]:
    """Return the settings as JSON values; what was sampled from the model is sampled again."""
    found, plain = method.model_dump(mode="json"), base.model_dump(mode="json")
    if "contexts" in found:
        found["contexts"] = plain["contexts"]
    return {name: value for name, value in found.items() if name not in OF_THE_MACHINE}


def _figures(scores: Mapping[str, Score]) -> dict[str, Figure]:
    return {name: Figure(**score.model_dump()) for name, score in scores.items()}
