"""Selection of the trained parameters, by block and by the role of a matrix.

The published code of the edit-decay study selected blocks but excluded `down_proj`, so it never
trained the edited matrix. Here the MLP's output matrix is `down` in every family, as given by the
family's row, and a test checks that exactly the selected parameters change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.core.errors import ErrataError
from errata.models.families import family_of
from errata.patches.weight_patch import WeightPatch
from errata.tuning.settings import ROLES, TuneSettings

_IN_ATTENTION = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o",
    "c_proj": "o", "dense": "o",
    "c_attn": "qkv", "qkv_proj": "qkv", "query_key_value": "qkv", "in_proj_qkv": "qkv",
    "q_b_proj": "q", "kv_b_proj": "kv",  # of latent attention: what expands to heads
}  # fmt: skip
_IN_MLP = {
    "up_proj": ("up",), "gate_proj": ("gate",), "gate_up_proj": ("gate", "up"), "c_fc": ("up",),
    "fc_in": ("up",), "fc1": ("up",), "dense_h_to_4h": ("up",),
    "down_proj": ("down",),  # also of shared experts
}  # fmt: skip


def edited_blocks(model: PreTrainedModel, patches: Iterable[WeightPatch]) -> tuple[int, ...]:
    """Return the blocks that patches change, ascending."""
    path = family_of(model).blocks + "."
    names = {name for patch in patches for name in patch.updates if name.startswith(path)}
    return tuple(sorted({int(name.removeprefix(path).split(".")[0]) for name in names}))


def tuned_blocks(
    model: PreTrainedModel, settings: TuneSettings, patches: Sequence[WeightPatch]
) -> tuple[int, ...]:
    """Return the selected blocks; raises `ErrataError` if there are none."""
    count = family_of(model).block_count(model)
    if settings.blocks == "all":
        return tuple(range(count))
    edited = edited_blocks(model, patches)
    if settings.blocks in ("edited", "others"):
        if not edited:
            raise ErrataError(
                f"blocks: {settings.blocks}, but the model has no patch that determines them",
                "apply the patches: --patch P, or list the blocks: --blocks 3,4,5",
            )
        wanted = [b for b in range(count) if (b in edited) is (settings.blocks == "edited")]
        if not wanted:
            raise _no_others()
        return tuple(wanted)
    blocks = sorted({int(block) for block in settings.blocks.split(",")})
    for block in blocks:
        family_of(model).block(model, block)
    return tuple(blocks)


def _no_others() -> ErrataError:
    return ErrataError(
        "every block is edited, so there are no others", "tune all blocks: --blocks all"
    )


def placed(settings: TuneSettings, written: Sequence[int], count: int) -> TuneSettings:
    """Resolve `edited` or `others` for edits that do not exist yet, and drop the guards.

    `written` are the blocks that the edits will change, `count` the model's number of blocks.
    Raises `ErrataError` if the edits leave no other blocks.
    """
    named = {"edited": written, "others": [b for b in range(count) if b not in written]}
    blocks = settings.blocks
    if blocks in named:
        if not named[blocks]:
            raise _no_others()
        blocks = ",".join(map(str, named[blocks]))
    return settings.with_values(blocks=blocks, shift_penalty=0.0, project=False, reapply=False)


def matrices(model: PreTrainedModel, blocks: Iterable[int], roles: Sequence[str]) -> list[str]:
    """Return the module paths of the matrices with these roles, block by block.

    Raises `ErrataError` if no matrix of the model has one of the roles.
    """
    family = family_of(model)
    found, missing, there = [], set(roles), set[str]()
    for block in blocks:
        attention = family.attention_path(model, block)
        for path, module in family.block(model, block).named_modules():
            has = _roles(path, module, family.block_mlp_out, attention)
            there |= has
            if missing & has or has & set(roles):
                missing -= has
                found.append(f"{family.blocks}.{block}.{path}")
    if missing:
        raise ErrataError(
            f"no matrix of this model has the role {' or '.join(sorted(missing))}",
            f"choose other roles: --modules {','.join(r for r in ROLES if r in there)}",
        )
    return found


def moving(
    model: PreTrainedModel, settings: TuneSettings, patches: Sequence[WeightPatch]
) -> tuple[str, ...]:
    """Return the full names of the trained parameters.

    With roles, the matrices with these roles; without (full tuning), all parameters of the selected
    blocks, or of the whole model if all blocks are selected.
    """
    blocks, roles = tuned_blocks(model, settings, patches), settings.roles
    if roles is not None:
        return tuple(f"{path}.weight" for path in matrices(model, blocks, roles))
    names = [name for name, _ in model.named_parameters()]
    if settings.blocks == "all":
        return tuple(names)
    starts = tuple(f"{family_of(model).blocks}.{block}." for block in blocks)
    return tuple(name for name in names if name.startswith(starts))


def _roles(path: str, module: nn.Module, write: str, attention: str) -> set[str]:
    """Return the roles of a module, given its path within the block."""
    if not isinstance(module, nn.Linear | Conv1D):
        return set()
    if path == write:
        return {"down"}
    leaf = path.rpartition(".")[2]
    if path.startswith(f"{attention}."):
        return set(_IN_ATTENTION.get(leaf, ""))
    return set(_IN_MLP.get(leaf, ()))
