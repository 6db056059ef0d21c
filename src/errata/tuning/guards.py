"""Keeping edits while the model is tuned: two mitigations that arXiv 2511.05852 proposes.

    penalty     λ · mean ‖h - h₀‖² / ‖h₀‖²   at the edited blocks and positions
    projection  ΔW ← ΔW (I - Q Qᵀ),          Q: (d_in, r) spans the edits' keys

h₀ is what stood there before tuning. The projection makes ΔW k = 0 for every edited key k, so
the edited matrix answers these keys as before. For LoRA, ΔW = s B A: taking the keys out of
A's rows, A ← A (I - Q Qᵀ), does the same whatever B becomes. It is applied to the update after
every step, since Adam turns a projected gradient into a step that is not. What feeds the matrix
may still change the keys themselves; the penalty sees that, the projection does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.families import family_of, oriented, weight_of
from errata.models.hooks import Site, first_tensor, frozen, record
from errata.models.layerwise import read_at
from errata.models.tokens import TokenRow, encode, pad_right, position_of
from errata.patches.patch import Patch
from errata.tuning.modules import edited_blocks
from errata.tuning.settings import TuneSettings

REQUESTS_AT_ONCE = 16
"""Edited positions that the penalty looks at in one step; it goes through all in turn."""
RANK_AT = 1e-5
"""Key directions below this share of the longest count as none."""


def edited_rows(tokenizer: PreTrainedTokenizerBase, patches: Sequence[Patch]) -> list[TokenRow]:
    """Return, per request of the patches, its text up to the edited position."""
    rows = []
    for patch in patches:
        where = patch.provenance.settings.get("position", "subject_last")
        for request in patch.provenance.requests:
            encoded = encode(tokenizer, request.text)
            rows.append(TokenRow(encoded.ids, position_of(encoded, request.span, where)).key)
    return rows


NO_PATCH = {
    "shift_penalty": "no position is edited",
    "project": "there are no keys to keep off",
    "reapply": "there is nothing to add once more",
}
"""What guards edits, and what it lacks where there are none."""


def check_guards(settings: TuneSettings, patches: Sequence[Patch], moving: Sequence[str]) -> None:
    """Raise `ErrataError` where edits are to be guarded that are not there, or do not move."""
    told = [patch for patch in patches if patch.provenance.requests]
    for guard, lacking in NO_PATCH.items():
        if getattr(settings, guard) and not (told if guard == "shift_penalty" else patches):
            raise ErrataError(
                f"{guard}: the model has no patch, so {lacking}", "put the patches on it: --patch P"
            )
    if settings.project and not {name for patch in patches for name in patch.updates} & set(moving):
        raise none_projected()


@dataclass
class ShiftPenalty:
    """How far the states at edited positions have moved from where they were."""

    model: PreTrainedModel
    rows: Sequence[TokenRow]
    blocks: tuple[int, ...]
    weight: float
    before: list[Tensor] = field(default_factory=list)  # per block: (rows, d), float32

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        patches: Sequence[Patch],
        weight: float,
    ) -> ShiftPenalty:
        """Read what stands at the edited positions now."""
        rows = edited_rows(tokenizer, patches)
        penalty = cls(model, rows, edited_blocks(model, patches), weight)
        with frozen(model):
            penalty.before = [each.float() for each in read_at(model, rows, penalty._sites())]
        return penalty

    def _sites(self) -> list[Site]:
        family = family_of(self.model)
        return [Site(family.block(self.model, block), "output") for block in self.blocks]

    def __call__(self, step: int) -> Tensor:
        """Return the weighted penalty of a step's share of the requests, with gradients."""
        count = min(REQUESTS_AT_ONCE, len(self.rows))
        picked = [(step * count + i) % len(self.rows) for i in range(count)]
        rows = [self.rows[i] for i in picked]
        ids = pad_right([row.ids for row in rows], self.model.device)
        line = torch.arange(len(rows), device=ids.device)
        place = torch.tensor([row.position for row in rows], device=ids.device)
        total = torch.zeros((), device=ids.device)
        with _still(self.model):
            values = record(self.model, ids, self._sites())
        for before, value in zip(self.before, values, strict=True):
            was = before[picked].to(ids.device)
            moved = first_tensor(value)[line, place].float() - was
            total = total + (moved.square().sum(-1) / was.square().sum(-1)).mean()
        return self.weight * total / len(self.before)


@contextmanager
def _still(model: PreTrainedModel) -> Iterator[None]:
    """Hold a model without dropout, which would count as a shift, gradients as they are."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def key_directions(patches: Sequence[Patch], name: str) -> Tensor:
    """Return Q: (d_in, r), float64, an orthonormal basis of the keys edited in a weight."""
    K = torch.cat([patch.updates[name].K for patch in patches if name in patch.updates], dim=1)
    U, S, _ = torch.linalg.svd(K.double(), full_matrices=False)
    return U[:, S > RANK_AT * S[0]]


def none_projected() -> ErrataError:
    """Say that nothing which was edited is tuned."""
    return ErrataError(
        "project: no edited matrix is tuned, so there is nothing to keep off its keys",
        "put the patches on the model (--patch P), and tune `down` of the edited blocks",
    )


@dataclass
class Projection:
    """What holds the updates of edited matrices off the edits' keys."""

    model: PreTrainedModel
    spans: dict[str, Tensor]  # per weight: Q (d_in, r)
    originals: dict[str, Tensor]  # full tuning: the weights before it

    @classmethod
    def of(
        cls, model: PreTrainedModel, patches: Sequence[Patch], moving: Sequence[str]
    ) -> Projection:
        """Prepare for the edited matrices among those that move.

        Raises `ErrataError` when their keys leave no direction free.
        """
        names = sorted({name for patch in patches for name in patch.updates} & set(moving))
        spans = {}
        for name in names:
            Q = key_directions(patches, name)
            if Q.shape[1] == len(Q):
                raise ErrataError(
                    f"project: the keys of {name} span all {len(Q)} directions; nothing could move",
                    "edit fewer facts, or use --shift-penalty",
                )
            spans[name] = Q.to(model.device, torch.float32)
        originals = {name: weight_of(model, name)[1].detach().clone() for name in names}
        return cls(model, spans, originals)

    @torch.no_grad()
    def __call__(self) -> None:
        """Take the keys out of what has been learnt so far."""
        for name, Q in self.spans.items():
            module = self.model.get_submodule(name.removesuffix(".weight"))
            if (lora := getattr(module, "lora_A", None)) is not None:
                for inner in lora.values():
                    A = inner.weight  # (rank, d_in)
                    A.copy_(A.float() - (A.float() @ Q) @ Q.T)
            else:
                self._full(module, name, Q)

    def _full(self, module: nn.Module, name: str, Q: Tensor) -> None:
        weight, original = module.get_parameter("weight"), self.originals[name]
        change = oriented(module, weight.float() - original.float())  # (d_out, d_in)
        kept = original.float() + oriented(module, change - (change @ Q) @ Q.T)
        weight.copy_(kept)
