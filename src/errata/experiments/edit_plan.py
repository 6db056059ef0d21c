"""How the requests of a run are cut into batches, in words too; importable without torch.

`plan_for` decides where nothing is given: a method that writes one request at a time (ROME) edits
each case of a dataset alone on the unedited model, as published (arXiv 2202.05262). Facts of one's
own, and those of a run whose later stages need one edited model, are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from errata.core.settings import Settings
from errata.core.text import counted
from errata.data.case import Case
from errata.data.request import check_batch, repeats
from errata.methods import Method


class EditPlan(Settings):
    """How the requests of a run are cut into batches."""

    batch_size: int | None = None
    """Requests per batch (default: all in one batch)."""
    sequential: bool = False
    """Edit each batch on top of the previous ones instead of on the unedited model."""
    by_default: bool = Field(False, exclude=True)
    """Whether the method chose the batch size. An unfinished run of an earlier version, which put
    all requests in one batch, then resumes as it was begun."""

    def sizes(self, count: int) -> list[int]:
        """Return the number of requests in each batch."""
        size = self.batch_size or max(1, count)
        return [min(size, count - start) for start in range(0, count, size)]

    def is_stacked(self, count: int) -> bool:
        """Whether one model has all edits at the end."""
        return self.sequential or len(self.sizes(count)) <= 1

    def words(self, count: int | None = None, below: int = 0) -> str:
        """Return the plan as a phrase, as in "30 facts in 3 batches of 10, in sequence".

        Without `count`, the number of facts is left out. `below` is the number of patches on the
        model before the first edit.
        """
        return _words(count, self.batch_size, self.sequential, below)


def plan_for(
    method: Method | type[Method],
    batch_size: int | None,
    sequential: bool,
    *,
    dataset: bool,
    one_model: bool = False,
) -> EditPlan:
    """Return the plan of a run; `batch_size` None stands for the method's default.

    `dataset` says that the facts are cases of a dataset, not corrections that belong together;
    `one_model`, that what follows needs one model with all edits.
    """
    default = batch_size is None and not sequential
    if default and dataset and not one_model and method.batch_limit is not None:
        return EditPlan(batch_size=method.batch_limit, by_default=True)
    return EditPlan(batch_size=batch_size, sequential=sequential)


def stack_words(sizes: Sequence[int]) -> str:
    """Return the phrase for a stack of patches with these numbers of facts, lowest first."""
    count = sum(sizes)
    if not sizes:
        return "the unedited model"
    if 0 in sizes or len(sizes) == 1 or len(set(sizes)) == 1:
        known = 0 not in sizes
        patches = f"a stack of {counted(len(sizes), 'patch', 'es')}"
        return _words(count, sizes[0], len(sizes) > 1, 0) if known else patches
    return f"{counted(count, 'fact')} in {len(sizes)} batches, in sequence"


def matrix_words(edits: Sequence[int]) -> str:
    """Return the plan of a survival matrix with these numbers of edits, in words."""
    facts = " or ".join(counted(count, "fact") for count in edits)
    return f"{facts} in one batch, so that one model with all edits is tuned"


def _words(count: int | None, size: int | None, sequential: bool, below: int) -> str:
    base = f"the model with {counted(below, 'patch', 'es')}" if below else "the unedited model"
    facts = "" if count is None else counted(count, "fact")
    if size is None or (count is not None and size >= count):
        alone = count == 1
        how = f"alone on {base}" if alone else "in one batch" + (f" on {base}" if below else "")
        return f"{facts}, {how}" if alone else f"{facts} {how}".strip()
    where = "in sequence" + (f", starting on {base}" if below else "")
    if size == 1:
        how = f"one at a time, {where}" if sequential else f"each alone on {base}"
        return ", ".join(filter(None, (facts, how)))
    number = "" if count is None else f"{-(-count // size)} "
    up_to = "up to " if count is not None and count % size else ""
    how = f"in {number}batches of {up_to}{size}, "
    return f"{facts} {how}{where if sequential else f'each on {base}'}".strip()


def batches_of(cases: Sequence[Case], plan: EditPlan) -> list[Sequence[Case]]:
    """Return the cases, cut into batches."""
    size = plan.batch_size or max(1, len(cases))
    return [cases[start : start + size] for start in range(0, len(cases), size)]


def check_batches(cases: Sequence[Case], plan: EditPlan) -> list[list[str]]:
    """Return the warnings for every batch; raises `ErrataError` for conflicting requests.

    Facts that repeat or contradict those of an earlier batch in a sequence are told with the first.
    """
    batches = [[case.request for case in batch] for batch in batches_of(cases, plan)]
    found = [check_batch(batch) for batch in batches]
    if plan.sequential and len(batches) > 1:
        told = repeats([request for batch in batches for request in batch])
        found[0] += [line for line in told if line not in found[0]]
    return found
