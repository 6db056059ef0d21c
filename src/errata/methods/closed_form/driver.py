"""The driver that every closed-form editor shares.

    requests -> keys K, target values Z -> A = method.read(K, ...) -> Δ = R A per block

R is the residual: what should be said minus what is said now. A is the *read*: which inputs
fetch it; only `read` differs between methods. Blocks are written from the lowest up, and keys
of a block are read on the model with the blocks below already edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator

from errata.core.errors import ErrataError
from errata.core.settings import Settings
from errata.data.request import EditRequest, check_batch
from errata.methods.closed_form.settings import Contexts, Search

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from errata.methods.closed_form.encoding import Rewrite
    from errata.methods.closed_form.keys import Keys
    from errata.methods.closed_form.target_search import Targets
    from errata.models.layerwise import LayerwiseReader
    from errata.patches.patch import Base, Patch, Update
    from errata.statistics.second_moment import SecondMoment


class ClosedForm(Settings):
    """Settings that all closed-form editors share; call one to get a patch."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: ClassVar[str]
    label: ClassVar[str]
    """The name as the field writes it."""
    place: ClassVar[Literal["block", "mlp"]] = "block"
    """Where the target value stands: at the output of the last block, or of its MLP."""
    inverts: ClassVar[bool] = True
    """Whether the second moment is inverted."""
    batch_limit: ClassVar[int | None] = None
    """How many requests are written at once; None for all."""
    depth: ClassVar[tuple[float, float]] = (0.15, 0.3)
    """First and last block as a share of depth, where no preset names them: a guess."""

    blocks: tuple[int, ...] | None = None
    """Blocks to edit; the model's preset when not given."""
    position: Literal["subject_first", "subject_last", "subject_first_after_last", "last"] = (
        "subject_last"
    )
    """The token whose key is edited."""
    search: Search = Search()
    """How target values are searched."""
    contexts: Contexts = Contexts()
    """Texts put before the prompt."""
    requests_at_once: int | None = Field(None, ge=1)
    """Requests searched together, as many as memory allows when not given; it changes speed."""
    memory: float | None = Field(None, gt=0)
    """Gigabytes that the search may take; a share of what the machine has when not given."""

    @field_validator("blocks")
    @classmethod
    def _ascending(cls, blocks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if blocks is not None and (not blocks or len(set(blocks)) < len(blocks)):
            raise ValueError("name at least one block, and none twice")
        if blocks is not None and len(blocks) > 1 and cls.place == "mlp":
            raise ValueError(f"{cls.label} writes one block; name one")
        return None if blocks is None else tuple(sorted(blocks))

    @property
    def needs_moment(self) -> bool:
        """Whether `read` uses the second moment."""
        return True

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
        raise NotImplementedError

    def check(self, moment: SecondMoment) -> None:
        """Raise `ErrataError` for a second moment of no use, before time is spent on targets."""
        moment.check_invertible()

    def notes(self, moment: SecondMoment) -> tuple[str, ...]:
        """What a reader of the patch should know of one block's second moment."""
        if self.inverts and moment.factor is None:
            return ("the second moment is not positive definite: solved by LU, less exactly",)
        return ()

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        *,
        base: Base,
        moments: Mapping[int, SecondMoment],
        earlier: Sequence[Patch] = (),
        originals: Mapping[str, Tensor] | None = None,
        targets: Targets | None = None,
        command: str | None = None,
    ) -> Patch:
        """Compute the patch that makes `model` answer `requests`; the model is left as found.

        `model` stands with the `earlier` patches applied, `originals` are the weights that they
        changed as the base has them. `targets`, when given, are used instead of a search.
        """
        from errata.models.families import weight_of
        from errata.models.identity import tensor_hash, versions
        from errata.patches.patch import Patch, Provenance

        warnings = check_batch(requests)
        rewrites, prefixes = self.rewrites(model, tokenizer, requests)
        grouped = self.grouped(model, rewrites)
        if targets is None:
            targets = grouped.find_targets(model, rewrites)
        if self.search.precision != "full":
            warnings.append(f"target values were searched with {self.search.precision} products")
        if targets.at_once is not None and targets.at_once < (grouped.requests_at_once or 0):
            warnings.append(f"memory ran out: {targets.at_once} requests were searched at once")
        updates = self.updates(model, rewrites, targets, moments, earlier)
        base_weights = {name: weight_of(model, name)[1] for name in updates} | dict(originals or {})
        used = {block: moments[block] for block in self.edited_blocks if self.needs_moment}
        provenance = Provenance(
            base=base,
            method=self.name,
            settings=grouped.model_dump(mode="json"),
            requests=tuple(requests),
            prefixes=prefixes,
            parents=tuple(patch.digest for patch in earlier),
            weights={name: tensor_hash(base_weights[name]) for name in updates},
            moments={str(block): moment.digest for block, moment in used.items()},
            losses=tuple(float(trace[-1, 0]) for trace in targets.losses),
            notes=(
                *warnings,
                *(f"block {b}: {note}" for b, m in used.items() for note in self.notes(m)),
            ),
            versions=versions(),
            command=command,
        )
        return Patch(updates, provenance)

    def rewrites(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
    ) -> tuple[list[Rewrite], tuple[str, ...]]:
        """Encode requests behind context prefixes; return both."""
        from errata.methods.closed_form.encoding import check_lengths, rewrite_of
        from errata.methods.closed_form.prefixes import sample_prefixes
        from errata.models.families import positions_of

        contexts = self.contexts
        prefixes = contexts.prefixes
        if prefixes is None:
            prefixes = sample_prefixes(
                model, tokenizer, contexts.prefix_lengths, contexts.prefix_seed
            )
        rewrites = [
            rewrite_of(
                tokenizer,
                request,
                prefixes,
                where=self.position,
                essence_prompt=self.search.essence_prompt,
                mean_by_type=self.place == "block",
            )
            for request in requests
        ]
        check_lengths(rewrites, positions_of(model))
        return rewrites, prefixes

    def find_targets(self, model: PreTrainedModel, rewrites: Sequence[Rewrite]) -> Targets:
        """Search the target value of every request: (n, d)."""
        from errata.methods.closed_form.residual import target_site
        from errata.methods.closed_form.target_search import search_targets

        block = self.edited_blocks[-1]
        site = target_site(model, block, self.place)
        at_once = self.grouped(model, rewrites).requests_at_once
        assert at_once is not None
        return search_targets(model, rewrites, block, site, self.search, at_once=at_once)

    def grouped(self, model: PreTrainedModel, rewrites: Sequence[Rewrite]) -> Self:
        """Return the method with the number of requests that it searches at once settled."""
        from errata.methods.closed_form.memory import searched_at_once

        if self.requests_at_once is not None:
            return self
        count = searched_at_once(model, self.edited_blocks[-1], rewrites, self.memory)
        return self.with_values(requests_at_once=count)

    def updates(
        self,
        model: PreTrainedModel,
        rewrites: Sequence[Rewrite],
        targets: Targets,
        moments: Mapping[int, SecondMoment],
        earlier: Sequence[Patch] = (),
    ) -> dict[str, Update]:
        """Return Δ = R A for every block's weight; the model is left as found."""
        import torch

        from errata.methods.closed_form.keys import Keys, bare_rows
        from errata.methods.closed_form.residual import output_wanted
        from errata.models.families import family_of
        from errata.models.hooks import frozen
        from errata.models.layerwise import LayerwiseReader
        from errata.models.precision import widened
        from errata.patches.patch import Update, add, keeping

        family = family_of(model)
        names = {block: family.weight_name(block) for block in self.edited_blocks}
        parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {
            name: [] for name in names.values()
        }
        limit = self.batch_limit or len(rewrites)
        wide = widened(model, self.search.precision)
        with frozen(model), wide, keeping(model, names.values()):
            for start in range(0, len(rewrites), limit):
                batch = range(start, min(start + limit, len(rewrites)))
                chosen, wanted = [rewrites[i] for i in batch], targets.pick(batch).values
                if self.place == "block":
                    last = self.edited_blocks[-1]
                    wanted = output_wanted(model, bare_rows(chosen), wanted, last)
                climbs = Keys(model, chosen), LayerwiseReader(model, bare_rows(chosen))
                for block, name in names.items():
                    memory = [p.updates[name].K for p in earlier if name in p.updates]
                    memory += [K for _, _, K in parts[name]]
                    part = self._part(model, climbs, wanted, block, moments.get(block), memory)
                    parts[name].append(part)
                    add(model, name, Update.of(*part).delta())
        return {
            name: Update.of(
                torch.cat([R for R, _, _ in held], dim=1),
                torch.cat([A for _, A, _ in held]),
                torch.cat([K for _, _, K in held], dim=1),
            )
            for name, held in parts.items()
        }

    def _part(
        self,
        model: PreTrainedModel,
        climbs: tuple[Keys, LayerwiseReader],
        wanted: Tensor,
        block: int,
        moment: SecondMoment | None,
        memory: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return R (d_out, n), A (n, d_in) and K (d_in, n) of one block for one batch.

        `climbs` read the keys of its requests, and their rows without prefixes.
        """
        from errata.methods.closed_form.residual import residual
        from errata.models.precision import solving_device

        if moment is None and self.needs_moment:
            raise ErrataError(
                f"{self.name} needs the second moment of block {block}", "run `errata stats` first"
            )
        device = solving_device(model.device)
        blocks = self.edited_blocks
        keys, bare = (read.to(device) for read in climbs[0].at(block, last=block == blocks[-1]))
        R = residual(model, climbs[1], wanted.to(device), block, self.place, blocks)
        held = [K.to(device) for K in memory]
        A = self.read(keys.T, bare.T, moment if self.needs_moment else None, held)
        return R, A, keys.T

    @property
    def edited_blocks(self) -> tuple[int, ...]:
        """The blocks that are written, ascending; raises `ErrataError` when none are set."""
        if self.blocks is None:
            raise ErrataError(
                f"{self.name} does not know which blocks to edit",
                "name them: --blocks 4,5,6 (blocks=(4, 5, 6))",
            )
        return self.blocks
