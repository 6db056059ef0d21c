"""Requests of a closed-form method: encoded once, their targets searched batch by batch or jointly.

A request is encoded when it is first needed, so that a resumed run does not encode requests
whose patches are on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from errata.data.request import EditRequest
from errata.methods.base import Job, Method
from errata.methods.closed_form.target_search import Targets

if TYPE_CHECKING:
    from torch import Tensor

    from errata.methods.closed_form.driver import ClosedForm
    from errata.methods.closed_form.rewrite import Rewrite
    from errata.patches.edited_model import EditedModel

GROUPING_SAMPLE = 64
"""Requests whose lengths decide how many are searched together."""
LISTED = 10
"""Requests whose numbers a remark lists."""


class ClosedFormJob(Job):
    """Some requests of a run, with their encodings and, once searched, their targets."""

    def __init__(
        self,
        method: ClosedForm,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        first: int = 0,
        encoded: dict[int, Rewrite] | None = None,
        targets: Targets | None = None,
    ) -> None:
        super().__init__(requests, method.requests_at_once or 1)
        self.method, self.edited, self.targets = method, edited, targets
        self._first = first
        self._encoded: dict[int, Rewrite] = {} if encoded is None else encoded

    @classmethod
    def begun(
        cls,
        method: ClosedForm,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        group_size: int | None,
    ) -> ClosedFormJob:
        """Return a job with prefixes sampled and the number of requests per search settled."""
        _ = edited.base  # weights that cannot be edited are an error here, before the search
        job = cls(method.sampled(edited), edited, requests)
        if group_size is not None:
            settled = job.method.with_values(requests_at_once=group_size)
        elif job.method.requests_at_once is None:
            sample = job.take(range(min(GROUPING_SAMPLE, len(requests))))
            settled = job.method.grouped(edited.model, sample.rewrites)
        else:
            settled = job.method
        return cls(settled, edited, requests, encoded=job._encoded)

    def take(self, chosen: range) -> ClosedFormJob:
        """Return the part of the job with the requests at these (consecutive) indices."""
        return ClosedFormJob(
            self.method,
            self.edited,
            self.requests[chosen.start : chosen.stop],
            self._first + chosen.start,
            self._encoded,
            None if self.targets is None else self.targets.pick(chosen),
        )

    def remarks(self) -> list[str]:
        """Return what a reader of the patch should know of the target search."""
        at_once = None if self.targets is None else self.targets.at_once
        precision, remarks = self.method.search.precision, []
        if precision != "full":
            remarks.append(f"target values were searched with {precision} products")
        if at_once is not None and at_once < (self.method.requests_at_once or 0):
            remarks.append(f"memory ran out: {at_once} requests were searched at once")
        failed = () if self.targets is None else self.targets.failed
        if failed:
            listed = ", ".join(str(self._first + i + 1) for i in failed[:LISTED])
            remarks.append(
                f"the search stopped short for {len(failed)} of {len(self.requests)} requests "
                f"({listed}{', …' if failed[LISTED:] else ''}): their targets do not hold in "
                "every context"
            )
        return remarks

    def shared(self) -> ClosedFormJob:
        """Return the job with the targets of all its requests searched on the present model."""
        found = self.method.find_targets(self.edited.model, self.rewrites)
        return ClosedFormJob(
            self.method, self.edited, self.requests, self._first, self._encoded, found
        )

    def finished_by(self, method: Method) -> ClosedFormJob:
        """Return the job with its encodings and targets, to be written with other settings."""
        settled = method.with_values(
            requests_at_once=self.method.requests_at_once,
            contexts=self.method.contexts.model_dump(),
        )
        assert isinstance(settled, type(self.method)), settled
        return ClosedFormJob(
            settled, self.edited, self.requests, self._first, self._encoded, self.targets
        )

    def state(self) -> dict[str, Tensor]:
        """Return the targets as tensors; empty before they are searched."""
        return {} if self.targets is None else self.targets.tensors()

    def with_state(self, state: Mapping[str, Tensor]) -> ClosedFormJob:
        """Return the job with stored targets."""
        found = Targets.of(state, self.edited.model.device)
        return ClosedFormJob(
            self.method, self.edited, self.requests, self._first, self._encoded, found
        )

    @property
    def rewrites(self) -> list[Rewrite]:
        """The requests in tokens; those not encoded yet are encoded now."""
        places = range(self._first, self._first + len(self.requests))
        missing = [place for place in places if place not in self._encoded]
        if missing:
            wanted = [self.requests[place - self._first] for place in missing]
            found = self.method.rewrites(self.edited, wanted, first=missing[0] + 1)
            self._encoded.update(zip(missing, found, strict=True))
        return [self._encoded[place] for place in places]
