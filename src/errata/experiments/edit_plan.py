"""How the requests of a run are cut into batches, and their check; importable without torch."""

from __future__ import annotations

from collections.abc import Sequence

from errata.core.settings import Settings
from errata.data.case import Case
from errata.data.request import check_batch


class EditPlan(Settings):
    """How the requests of a run are cut into batches."""

    batch_size: int | None = None
    """Requests per batch (default: all in one batch)."""
    sequential: bool = False
    """Edit each batch on top of the previous ones instead of on the unedited model."""


def batches_of(cases: Sequence[Case], plan: EditPlan) -> list[Sequence[Case]]:
    """Return the cases, cut into batches."""
    size = plan.batch_size or max(1, len(cases))
    return [cases[start : start + size] for start in range(0, len(cases), size)]


def check_batches(cases: Sequence[Case], plan: EditPlan) -> list[list[str]]:
    """Return the warnings for every batch; raises `ErrataError` for conflicting requests."""
    return [check_batch([case.request for case in batch]) for batch in batches_of(cases, plan)]
