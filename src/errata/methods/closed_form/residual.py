"""Residuals: the change of a block's MLP output that produces the target value.

In a pre-norm block the output of the MLP matrix is added to the residual stream unchanged. In a
post-norm block (Gemma 2 and 3, OLMo 2) it first passes an RMS norm n(y) = γ ⊙ y / rms(y), whose
output has a fixed length up to γ, so that not every change is possible. There, targets are
searched before the norm, where every target can be reached, and a block's share of a change is
replaced by the nearest possible one. Granite multiplies the output by a constant; there, too,
targets are searched before the factor, and every change is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.models.families import Scale, family_of
from errata.models.hooks import Site
from errata.models.layerwise import LayerwiseReader, read_at
from errata.models.tokens import TokenRow

Place = Literal["block", "mlp"]
HALVINGS = 64
"""Steps of the bisection: to the last bit of float64 from any start."""
NOTHING = 1e-300
"""Lower bound of lengths in divisions, for outputs of length zero."""
BARELY = 1e-9
"""Distance of λ from its limit, relative to the smallest squared gain."""


def target_site(model: PreTrainedModel, block: int, place: Place) -> Site:
    """Return the site of target values: the output of the block or of its MLP.

    Where a norm or a factor follows the MLP, it is always that of the MLP.
    """
    family = family_of(model)
    if place == "block" and family.adds_unchanged:
        return Site(family.block(model, block), "output")
    return Site(family.mlp_out(model, block), "output")


@torch.no_grad()
def output_wanted(
    model: PreTrainedModel, rows: Sequence[TokenRow], values: Tensor, block: int
) -> Tensor:
    """Return the output of `block` at the rows, given its target values (n, d): (n, d)."""
    family = family_of(model)
    norm = family.after_mlp(model, block)
    if norm is None:
        return values
    sites = [
        Site(family.block(model, block), "output"),
        Site(family.mlp_out(model, block), "output"),
    ]
    output, raw = (read.float() for read in read_at(model, rows, sites))
    return output + norm(values.to(raw)) - norm(raw)


@torch.no_grad()
def residual(
    model: PreTrainedModel,
    rows: LayerwiseReader,
    wanted: Tensor,
    block: int,
    place: Place,
    blocks: Sequence[int],
) -> Tensor:
    """Return R (d, n), float64: the change of the MLP output of `block` at the rows.

    `wanted` (n, d) is the target output of the MLP itself (`mlp`), or of the last of `blocks`;
    `block` and the edited blocks above it each contribute an equal share.
    """
    family = family_of(model)
    norm = family.after_mlp(model, block) if place == "block" else None
    last = family.block(model, blocks[-1]) if place == "block" else family.mlp_out(model, block)
    modules = [last] if norm is None else [last, family.mlp_out(model, block)]
    sites = [Site(module, "output") for module in modules]
    now, *rest = rows.read(sites, 0 if block == blocks[-1] else block)
    change = (wanted.double() - now.to(wanted.device, torch.float64)) / sum(
        other >= block for other in blocks
    )
    return (change if norm is None else _before(norm, rest[0], change)).T


def _before(norm: nn.Module, raw: Tensor, change: Tensor) -> Tensor:
    """Return the change of `raw` for which its norm or factor changes by `change`: (n, d) each.

    For all y of the length of `raw`, n(y) = g ⊙ y: an ellipsoid. Its point nearest to
    w = n(raw) + `change` is y = g w / (g² + λ) with λ > -min g²; since ‖y‖ decreases in λ,
    λ is found by bisection. A w on the ellipsoid is reached exactly, and nothing is divided by
    a gain near 0, as in w / g.
    """
    if isinstance(norm, Scale):
        return change / norm.factor
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    gains, now, raw = (x.to(change) for x in (norm(torch.ones_like(raw)), norm(raw), raw))
    gains = gains * (now.norm(dim=1) / (gains * raw).norm(dim=1).clamp(min=NOTHING))[:, None]
    aim, squares, size = gains * (now + change), gains**2, raw.norm(dim=1)
    low, high = -(1 - BARELY) * squares.amin(1), aim.norm(dim=1) / size.clamp(min=NOTHING)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        long = (aim / (squares + middle[:, None])).norm(dim=1) > size
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    found = aim / (squares + high[:, None]).clamp(min=NOTHING)
    return found * (size / found.norm(dim=1).clamp(min=NOTHING))[:, None] - raw
