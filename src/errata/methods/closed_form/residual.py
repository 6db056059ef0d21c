"""Residuals: what the MLP output matrix of a block must say in addition, so that it arrives.

In a pre-norm block what the matrix says joins the residual stream as it is. In a post-norm block
(Gemma 2 and 3, OLMo 2) an RMS norm n stands between them, n(y) = γ ⊙ y / rms(y): whatever the
matrix says, what joins has the same length but for γ, so that not every change can be made.
There, target values are searched before the norm, where whatever is found can be said, and the
share of a change that is asked of one of several blocks becomes the nearest that it can make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.models.families import family_of
from errata.models.hooks import Site
from errata.models.layerwise import LayerwiseReader, read_at
from errata.models.tokens import TokenRow

Place = Literal["block", "mlp"]
HALVINGS = 64
"""Steps of the bisection: to the last bit of float64 from any start."""
NOTHING = 1e-300
"""What a length that is nothing counts as: where the matrix says nothing, nothing can be said."""
BARELY = 1e-9
"""How near λ comes to its end, as a share of the smallest squared gain."""


def target_site(model: PreTrainedModel, block: int, place: Place) -> Site:
    """Return where target values stand: at the block's output, or at what its MLP says.

    In a post-norm block it is the second in any case.
    """
    family = family_of(model)
    if place == "block" and family.block_post_norm is None:
        return Site(family.block(model, block), "output")
    return Site(family.mlp_out(model, block), "output")


@torch.no_grad()
def output_wanted(
    model: PreTrainedModel, rows: Sequence[TokenRow], values: Tensor, block: int
) -> Tensor:
    """Return what `block` puts out at the rows when its target values (n, d) stand: (n, d)."""
    family = family_of(model)
    norm = family.post_norm(model, block)
    if norm is None:
        return values
    sites = [
        Site(family.block(model, block), "output"),
        Site(family.mlp_out(model, block), "output"),
    ]
    output, says = (read.float() for read in read_at(model, rows, sites))
    return output + norm(values.to(says)) - norm(says)


@torch.no_grad()
def residual(
    model: PreTrainedModel,
    rows: LayerwiseReader,
    wanted: Tensor,
    block: int,
    place: Place,
    blocks: Sequence[int],
) -> Tensor:
    """Return R (d, n), float64: what the matrix of `block` must say in addition at the rows.

    `wanted` (n, d) is what the matrix itself shall say (`mlp`), or what the last of `blocks`
    shall put out, of which `block` and those above do an equal share each.
    """
    family = family_of(model)
    norm = family.post_norm(model, block) if place == "block" else None
    last = family.block(model, blocks[-1]) if place == "block" else family.mlp_out(model, block)
    modules = [last] if norm is None else [last, family.mlp_out(model, block)]
    sites = [Site(module, "output") for module in modules]
    now, *rest = rows.read(sites, 0 if block == blocks[-1] else block)
    change = (wanted.double() - now.to(wanted.device, torch.float64)) / sum(
        other >= block for other in blocks
    )
    return (change if norm is None else _before(norm, rest[0], change)).T


def _before(norm: nn.Module, says: Tensor, change: Tensor) -> Tensor:
    """Return what to say besides `says` so that its norm changes by `change`: (n, d) each.

    For all y as long as `says`, n(y) = g ⊙ y: an ellipsoid. Sought is its point nearest to
    w = n(says) + `change`: y = g w / (g² + λ), with λ > -min g² as y shrinks while λ grows,
    found by bisection. A w on the ellipsoid is met exactly; no change is divided by a gain
    near 0, as w / g would be.
    """
    says = says.to(torch.promote_types(says.dtype, torch.float32))
    gains, now, says = (x.to(change) for x in (norm(torch.ones_like(says)), norm(says), says))
    gains = gains * (now.norm(dim=1) / (gains * says).norm(dim=1).clamp(min=NOTHING))[:, None]
    aim, squares, size = gains * (now + change), gains**2, says.norm(dim=1)
    low, high = -(1 - BARELY) * squares.amin(1), aim.norm(dim=1) / size.clamp(min=NOTHING)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        long = (aim / (squares + middle[:, None])).norm(dim=1) > size
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    found = aim / (squares + high[:, None]).clamp(min=NOTHING)
    return found * (size / found.norm(dim=1).clamp(min=NOTHING))[:, None] - says
