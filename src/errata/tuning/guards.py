"""Protecting edits during fine-tuning: two mitigations proposed in arXiv 2511.05852.

    penalty     λ · mean ‖h - h₀‖² / ‖h₀‖²   at the edited blocks and positions
    projection  ΔW ← ΔW (I - Q Qᵀ),          Q: (d_in, r) spans the edits' keys

h₀ is the hidden state before tuning. The projection makes ΔW k = 0 for every edited key k, so the
edited matrix responds to these keys as before. For LoRA, ΔW = s B A: projecting the rows of A,
A ← A (I - Q Qᵀ), has the same effect for any B. The update is projected after every step, because
Adam's step for a projected gradient is not itself projected. Layers below the matrix may still
change the keys; the penalty responds to that, the projection does not.
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
from errata.patches.weight_patch import WeightPatch
from errata.tuning.modules import edited_blocks
from errata.tuning.settings import TuneSettings

REQUESTS_AT_ONCE = 16
"""Edited positions per step in the penalty, which cycles through all of them."""
RANK_AT = 1e-5
"""Singular values of the keys below this fraction of the largest count as zero."""


def edited_rows(
    tokenizer: PreTrainedTokenizerBase, patches: Sequence[WeightPatch]
) -> list[TokenRow]:
    """Return one row per request of the patches: its tokens up to the edited position."""
    rows = []
    for patch in patches:
        where = patch.provenance.settings.get("position", "subject_last")
        for request in patch.provenance.requests:
            encoded = encode(tokenizer, request.text)
            rows.append(TokenRow(encoded.ids, position_of(encoded, request.span, where)).key)
    return rows


NO_PATCH = {
    "shift_penalty": "there are no edited positions",
    "project": "there are no keys to project off",
    "reapply": "there is nothing to reapply",
}
"""The guards, and the reason each one needs a patch."""


def check_guards(
    settings: TuneSettings, patches: Sequence[WeightPatch], moving: Sequence[str]
) -> None:
    """Raise `ErrataError` if a guard lacks its patches or its trained parameters."""
    recorded = [patch for patch in patches if patch.provenance.requests]
    for guard, lacking in NO_PATCH.items():
        if getattr(settings, guard) and not (recorded if guard == "shift_penalty" else patches):
            raise ErrataError(
                f"{guard}: the model has no patch, so {lacking}", "apply the patches: --patch P"
            )
    if settings.project and not {name for patch in patches for name in patch.updates} & set(moving):
        raise none_projected()


@dataclass
class ShiftPenalty:
    """Penalty on the shift of hidden states at edited positions."""

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
        patches: Sequence[WeightPatch],
        weight: float,
    ) -> ShiftPenalty:
        """Record the current hidden states at the edited positions."""
        rows = edited_rows(tokenizer, patches)
        penalty = cls(model, rows, edited_blocks(model, patches), weight)
        with frozen(model):
            penalty.before = [each.float() for each in read_at(model, rows, penalty._sites())]
        return penalty

    def _sites(self) -> list[Site]:
        family = family_of(self.model)
        return [Site(family.block(self.model, block), "output") for block in self.blocks]

    def __call__(self, step: int) -> Tensor:
        """Return the weighted penalty on this step's requests, differentiable."""
        count = min(REQUESTS_AT_ONCE, len(self.rows))
        picked = [(step * count + i) % len(self.rows) for i in range(count)]
        rows = [self.rows[i] for i in picked]
        ids = pad_right([row.ids for row in rows], self.model.device)
        line = torch.arange(len(rows), device=ids.device)
        place = torch.tensor([row.position for row in rows], device=ids.device)
        total = torch.zeros((), device=ids.device)
        with _without_dropout(self.model):
            values = record(self.model, ids, self._sites())
        for before, value in zip(self.before, values, strict=True):
            was = before[picked].to(ids.device)
            moved = first_tensor(value)[line, place].float() - was
            total = total + (moved.square().sum(-1) / was.square().sum(-1)).mean()
        return self.weight * total / len(self.before)


@contextmanager
def _without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Disable dropout, which would count as a shift; gradients are unaffected."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def key_directions(patches: Sequence[WeightPatch], name: str) -> Tensor:
    """Return Q: (d_in, r), float64, an orthonormal basis of the keys edited in a weight."""
    K = torch.cat([patch.keys_of(name) for patch in patches if name in patch.updates], dim=1)
    U, S, _ = torch.linalg.svd(K.double(), full_matrices=False)
    return U[:, S > RANK_AT * S[0]]


def none_projected() -> ErrataError:
    """Return the error for a projection without a trained edited matrix."""
    return ErrataError(
        "project: no edited matrix is tuned, so there is nothing to project",
        "apply the patches (--patch P), and tune `down` of the edited blocks",
    )


@dataclass
class Projection:
    """Projects updates of edited matrices off the edits' keys."""

    model: PreTrainedModel
    spans: dict[str, Tensor]  # per weight: Q (d_in, r)
    originals: dict[str, Tensor]  # full tuning: the weights before tuning

    @classmethod
    def of(
        cls, model: PreTrainedModel, patches: Sequence[WeightPatch], moving: Sequence[str]
    ) -> Projection:
        """Prepare the projection for the edited matrices among the trained parameters.

        Raises `ErrataError` if the keys of a matrix span its whole input space.
        """
        names = sorted({name for patch in patches for name in patch.updates} & set(moving))
        spans = {}
        for name in names:
            Q = key_directions(patches, name)
            if Q.shape[1] == len(Q):
                raise ErrataError(
                    f"project: the keys of {name} span all {len(Q)} dimensions; none is free",
                    "edit fewer facts, or use --shift-penalty",
                )
            spans[name] = Q.to(model.device, torch.float32)
        originals = {name: weight_of(model, name)[1].detach().clone() for name in names}
        return cls(model, spans, originals)

    @torch.no_grad()
    def __call__(self) -> None:
        """Project the current updates off the keys."""
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
        weight.copy_(original.float() + oriented(module, change - (change @ Q) @ Q.T))
