"""The driver that all closed-form methods share, with the steps of an edit as named methods.

    rewrites       requests → token ids behind context prefixes
    find_targets   → Z, the values that the MLP output should take (gradient search)
    keys           → K, the inputs of a block's MLP output matrix at the edited position
    residual       → R, the target minus the present output
    read           → A, the directions of input that retrieve R; Δ = R A
    finished       what is done to Δ afterwards

A method defines `read` and may override other steps. Blocks are edited lowest first; keys see it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from errata.core.errors import ErrataError
from errata.data.request import EditRequest
from errata.methods.base import Job, Method
from errata.methods.closed_form.settings import (
    MAX_STEPS,
    Contexts,
    Search,
    ascending,
    blocks_by_depth,
    check_blocks,
    exact_steps,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from errata.core.cost import Cost
    from errata.methods.closed_form.job import ClosedFormJob
    from errata.methods.closed_form.keys import Keys
    from errata.methods.closed_form.rewrite import Rewrite
    from errata.methods.closed_form.target_search import Targets
    from errata.models.layerwise import LayerwiseReader
    from errata.patches.chat_form import ChatForm
    from errata.patches.edited_model import EditedModel
    from errata.patches.update import Update
    from errata.patches.weight_patch import WeightPatch
    from errata.statistics.second_moment import SecondMoment


class ClosedForm(Method):
    """Settings that all closed-form methods share."""

    place: ClassVar[Literal["block", "mlp"]] = "block"
    """Whether target values are outputs of the last edited block or of its MLP."""
    inverts: ClassVar[bool] = True
    """Whether the second moment is inverted."""
    depth: ClassVar[tuple[float, float]] = (0.15, 0.3)
    """First and last edited block as a fraction of the depth, for models without a preset."""
    spans: ClassVar[tuple[int, ...]] = (1, 3, 5)

    blocks: tuple[int, ...] | None = None
    """Blocks to edit (default: the model's preset)."""
    position: Literal["subject_first", "subject_last", "subject_first_after_last", "last"] = (
        "subject_last"
    )
    """Token position whose key is edited."""
    search: Search = Search()
    """Settings of the target search."""
    contexts: Contexts = Contexts()
    """Context prefixes put before the prompt."""
    requests_at_once: int | None = Field(None, ge=1)
    """Requests per target search (default: as many as memory allows); affects speed only."""
    memory: float | None = Field(None, gt=0)
    """Memory limit of the target search in GB (default: a share of the device's memory)."""

    @field_validator("blocks")
    @classmethod
    def _ascending(cls, blocks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        found = None if blocks is None else ascending(blocks)
        if found and len(found) > 1 and cls.place == "mlp":
            raise ValueError(f"{cls.label} writes one block; name one")
        return found

    @property
    def edited_blocks(self) -> tuple[int, ...]:
        """The edited blocks, ascending; raises `ErrataError` when none are set."""
        if self.blocks is None:
            raise ErrataError(
                f"{self.name} does not know which blocks to edit",
                "name them: --blocks 4,5,6 (blocks=(4, 5, 6))",
            )
        return self.blocks

    @property
    def moment_blocks(self) -> tuple[int, ...]:
        """The edited blocks, whose second moments `read` uses."""
        return self.edited_blocks

    @classmethod
    def defaults_for(cls, block_count: int) -> dict[str, Any]:
        """Return blocks by `depth`, and a search that goes on until targets hold."""
        others = {"search": {"max_steps": MAX_STEPS}, "contexts": {"template": "auto"}}
        return {"blocks": blocks_by_depth(*cls.depth, block_count), **others}

    @classmethod
    def settled(cls, *layers: Mapping[str, Any]) -> Self:
        """Merge settings, the last ones first; `steps` without `max_steps` is exact."""
        return super().settled(*map(exact_steps, layers))

    def check_model(self, block_count: int) -> tuple[str, ...]:
        """Raise `ErrataError` for blocks that the model lacks; warn of inexact products."""
        check_blocks(self.edited_blocks, self.search.loss_block, block_count)
        return self.search.warnings()

    def check(self, moment: SecondMoment) -> None:
        """Raise `ErrataError` for a singular second moment, before targets are searched."""
        moment.check_invertible()

    def notes(self, moment: SecondMoment, keys: Tensor) -> tuple[str, ...]:
        """Return notes on one block's second moment and keys (d_in, n) for the provenance."""
        if self.inverts and moment.factor is None:
            return ("the second moment is not positive definite: solved by LU, less exactly",)
        return ()

    def summary(self) -> str:
        """Return the method, its blocks and the steps of its search."""
        return f"{super().summary()}, {self.search.steps} steps"

    def remedies(self) -> tuple[str, ...]:
        """Return what to change so that an edit becomes stronger."""
        values = self.model_dump()
        ways = (
            f"a {way} --{name.replace('_', '-')} (it is {values[name]:g})"
            for name, way in self.restraints.items()
            if values.get(name) is not None
        )
        return (*ways, "more --steps", "other --blocks")

    def sampled(self, edited: EditedModel) -> Self:
        """Return the method with its context prefixes sampled, and its template settled."""
        from errata.methods.closed_form.prefixes import prefixes_of

        prefixes = prefixes_of(self.contexts, edited.model, edited.tokenizer)
        found = {"prefixes": prefixes, "template": self.contexts.template_for(edited)}
        return self.with_values(contexts={**self.contexts.model_dump(), **found})

    def begin(
        self, edited: EditedModel, requests: Sequence[EditRequest], group_size: int | None = None
    ) -> ClosedFormJob:
        """Return a job that encodes each request once and searches targets in groups."""
        from errata.methods.closed_form.job import ClosedFormJob

        return ClosedFormJob.begun(self, edited, requests, group_size)

    def shared_settings(self) -> dict[str, Any]:
        """Return the settings of the target search, and the block where targets are searched."""
        searched = self.model_dump(mode="json", include={"position", "search", "contexts"})
        return {"place": self.place, "block": self.edited_blocks[-1], **searched}

    def costs(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        batch_sizes: Sequence[int],
        scoring: Cost,
    ) -> list[Cost]:
        """Return the costs of target search, reading keys, and solving."""
        from errata.methods.closed_form.cost import closed_form_costs

        return closed_form_costs(self, edited, requests, batch_sizes, scoring)

    def edit(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        *,
        moments: Mapping[int, SecondMoment],
        job: Job | None = None,
        notes: Sequence[str] = (),
        command: str | None = None,
    ) -> WeightPatch:
        """Return the patch that makes the model answer `requests` (see `Method.edit`)."""
        from errata.methods.closed_form.job import ClosedFormJob
        from errata.methods.closed_form.updates import moment_notes
        from errata.patches.weight_patch import WeightPatch

        for block in moments.keys() & set(self.moment_blocks):
            self.check(moments[block])
        work = self.begin(edited, requests) if job is None else job
        assert isinstance(work, ClosedFormJob), work
        searched = work if work.targets is not None else work.shared()
        method, targets = work.method, searched.targets
        assert targets is not None
        remarks = [*notes, *searched.remarks()]
        earlier = tuple(edited.weight_patches)
        updates = method.updates(edited.model, searched.rewrites, targets, moments, earlier)
        used = {block: moments[block] for block in self.moment_blocks}
        remarks += moment_notes(self, edited.model, updates, used)
        settings = self.with_values(requests_at_once=method.requests_at_once)
        provenance = self.provenance(
            edited,
            requests,
            updates,
            settings=settings.model_dump(mode="json"),
            prefixes=method.contexts.prefixes,
            moments={str(block): moment.digest for block, moment in used.items()},
            losses=tuple(float(trace[-1, 0]) for trace in targets.losses),
            stopped_short=None if targets.least is None else targets.failed,
            notes=tuple(remarks),
            command=command,
        )
        return WeightPatch(updates, provenance)

    def forms(self, edited: EditedModel) -> list[ChatForm | None]:
        """Return plain text, a chat or both, as `contexts.template` says."""
        return self.contexts.forms(edited)

    def rewrites(
        self, edited: EditedModel, requests: Sequence[EditRequest], first: int = 1
    ) -> list[Rewrite]:
        """Encode requests behind context prefixes, as the prompt patches of the stack render them.

        Raises `ErrataError` for a request that is too long, by its number counted from `first`.
        """
        from errata.methods.closed_form.prefixes import prefixes_of
        from errata.methods.closed_form.rewrite import encode_requests

        prefixes = prefixes_of(self.contexts, edited.model, edited.tokenizer)
        return encode_requests(self, edited, requests, prefixes, first)

    def grouped(self, model: PreTrainedModel, rewrites: Sequence[Rewrite]) -> Self:
        """Return the method with the number of requests per target search settled."""
        from errata.methods.closed_form.memory import searched_at_once

        if self.requests_at_once is not None:
            return self
        count = searched_at_once(model, self.edited_blocks[-1], rewrites, self.memory)
        return self.with_values(requests_at_once=count)

    def find_targets(self, model: PreTrainedModel, rewrites: Sequence[Rewrite]) -> Targets:
        """Search the target value of every request: (n, d)."""
        from errata.methods.closed_form.residual import target_site
        from errata.methods.closed_form.target_search import search_targets

        block, at_once = self.edited_blocks[-1], self.grouped(model, rewrites).requests_at_once or 1
        site = target_site(model, block, self.place)
        return search_targets(model, rewrites, block, site, self.search, at_once=at_once)

    def updates(
        self,
        model: PreTrainedModel,
        rewrites: Sequence[Rewrite],
        targets: Targets,
        moments: Mapping[int, SecondMoment],
        earlier: Sequence[WeightPatch] = (),
    ) -> dict[str, Update]:
        """Return Δ = R A for every block's weight; the model is left as found."""
        from errata.methods.closed_form.updates import write_blocks

        return self.finished(write_blocks(self, model, rewrites, targets, moments, earlier))

    def keys(self, keys: Keys, block: int) -> tuple[Tensor, Tensor]:
        """Return K at a block, averaged over prefixes and of the bare prompt: (n, d_in) each."""
        return keys.at(block, last=block == self.edited_blocks[-1])

    def residual(
        self, model: PreTrainedModel, rows: LayerwiseReader, wanted: Tensor, block: int
    ) -> Tensor:
        """Return R (d_out, n), float64: the change of a block's MLP output that is asked of it.

        `wanted` (n, d) is the output that the last edited block (or its MLP) should have;
        `rows` reads the present hidden states of the bare prompts.
        """
        from errata.methods.closed_form.residual import residual

        return residual(model, rows, wanted, block, self.place, self.edited_blocks)

    @property
    def reads_history(self) -> bool:
        """Whether `read` uses the keys of earlier patches."""
        return False

    @abstractmethod
    def read(
        self,
        keys: Tensor,
        bare: Tensor,
        moment: SecondMoment | None,
        memory: Sequence[Tensor] | None,
    ) -> Tensor:
        """Return A: (n, d_in), float64.

        `keys` and `bare`: (d_in, n), the keys with and without prefixes; `memory`: the keys of
        earlier edits, (d_in, …) for each batch.
        """

    def finished(self, updates: dict[str, Update]) -> dict[str, Update]:
        """Return the updates after the last step: a limit of norm or rank, a sparse mask."""
        return updates
