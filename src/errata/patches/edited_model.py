"""`EditedModel`: a model, its tokenizer and the stack of patches on it; and `load`.

The weights are always base + patches in order, computed from saved originals, so undoing
any patch gives what would have been there without it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.families import family_of, positions_of, weight_of
from errata.models.hooks import frozen
from errata.models.identity import check_finite, model_hash, same_weights
from errata.models.loading import pretrained, to_device
from errata.models.tokens import encode
from errata.patches.adapter import check_kind, find_tuned, is_adapter, merge_tuned, read_adapter
from errata.patches.patch import Base, Patch, change_lost, restore, write

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights may be held in."""


@dataclass(eq=False, repr=False)
class EditedModel:
    """A model with a stack of patches on it; the first patch was applied first."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The name or path that it was loaded by; presets and corpora are found by it."""
    patches: list[Patch] = field(default_factory=list, init=False)
    _originals: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        family_of(self.model)

    def __repr__(self) -> str:
        """Tell the name and what is on it, not every module."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        kind = f"{self.model.config.model_type}, {size:,} numbers, {self.model.dtype}"
        return f"EditedModel({self.name!r}: {kind}; patches: {self.patches})"

    @cached_property
    def base(self) -> Base:
        """The unedited model's identity; it is hashed once, when first asked for."""
        with self.without_patches():
            weights = model_hash(self.model)
        return Base(name=self.name, model_type=self.model.config.model_type, weights=weights)

    def base_weight(self, name: str) -> Tensor:
        """Return a weight's value in the unedited model, without a copy."""
        original = self._originals.get(name)
        return weight_of(self.model, name)[1] if original is None else original

    def apply(self, patch: Patch, *, allow_base: bool = False) -> dict[str, float]:
        """Put a patch on top; return, per weight, the share of the change that the dtype loses.

        Raises `ErrataError` when the patch was made for another base, unless `allow_base`.
        """
        expected = patch.provenance.base
        if not allow_base and not same_weights(expected.weights, self.base.weights):
            raise ErrataError(
                f"this patch was made for {expected.name} ({expected.weights[:12]}), "
                f"not for {self.name} ({self.base.weights[:12]})",
                "load the model it was made for",
                "to apply it all the same, say --allow-base (in Python: allow_base=True)",
            )
        added = {
            name: weight_of(self.model, name)[1].detach().clone()
            for name in patch.updates
            if name not in self._originals
        }
        originals = {**self._originals, **added}
        try:
            write(self.model, originals, [*self.patches, patch])
            for name in patch.updates:
                if not torch.stack(torch.aminmax(weight_of(self.model, name)[1])).isfinite().all():
                    raise ErrataError(
                        f"the patch makes {name} infinite in {self.model.dtype}",
                        "load the model in a wider dtype: --dtype float32, or bfloat16",
                    )
        except BaseException:
            write(self.model, originals, self.patches)
            raise
        self._originals = originals
        self.patches.append(patch)
        return change_lost(
            self.model, {name: originals[name] for name in patch.updates}, self.patches
        )

    def undo(self, patch: Patch | None = None) -> Patch:
        """Take a patch back, the last one unless another is named; return it.

        Raises `ErrataError` when there is none, or the named one is not applied.
        """
        if not self.patches or (patch is not None and patch not in self.patches):
            raise ErrataError(
                "there is no such patch to undo", "the model's patches are in `.patches`"
            )
        index = len(self.patches) - 1 if patch is None else self.patches.index(patch)
        taken = self.patches.pop(index)
        write(self.model, self._originals, self.patches)
        held = {name for other in self.patches for name in other.updates}
        self._originals = {name: tensor for name, tensor in self._originals.items() if name in held}
        return taken

    @contextmanager
    def without_patches(self) -> Iterator[None]:
        """Show the unedited model for the time of a `with` block."""
        try:
            restore(self.model, self._originals)
            yield
        finally:
            write(self.model, self._originals, self.patches)

    def bake(self) -> None:
        """Take the model as it stands for a base of its own: patches become part of the weights."""
        self.patches.clear()
        self._originals = {}
        self.__dict__.pop("base", None)

    def rendered(self, prompt: str) -> str:
        """Return a prompt as the model gets it."""
        return prompt

    @torch.no_grad()
    def generate(self, prompt: str, max_new_tokens: int = 32) -> str:
        """Continue a prompt greedily, until the model ends it; return the new text."""
        ids = torch.tensor([encode(self.tokenizer, prompt).ids], device=self.model.device)
        pad, room = self.tokenizer.pad_token_id, positions_of(self.model) - ids.shape[1]
        if max_new_tokens < 1 or room < 1:
            raise ErrataError(
                f"there is no room for an answer: the prompt has {ids.shape[1]} tokens, "
                f"{max_new_tokens} may follow, the model reads {positions_of(self.model)}",
                "shorten the prompt, or let more tokens follow",
            )
        with frozen(self.model):
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(max_new_tokens, room),
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            )
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def load(
    name_or_path: str,
    *,
    path: str | Path | None = None,
    adapter: str | Path | None = None,
    adapter_kind: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    patches: Sequence[Patch | str | Path] = (),
    allow_base: bool = False,
) -> EditedModel:
    """Load a model by Hub name, folder, or `demo` for the embedded one, with patches applied.

    Scripts of the field give a Hub name and, beside it, the `path` of a checkpoint: it is loaded
    in the name's place; one that is empty or blank means the name. `adapter` is a PEFT LoRA or
    DoRA folder, blank for none, `adapter_kind` ("lora" or "dora") what it has to be. It is
    merged into the weights, in the model's dtype, so that the model can be edited like any
    other; its identity, to which patches belong, is that of the merged weights. An adapter that
    `errata tune` made brings the patches that belong below it; a run of `errata tune`, or a
    whole checkpoint from one, may be given as `adapter` as well; the checkpoint is then loaded in
    the name's place. Patches that are part of what was tuned are not put on once more.

    `dtype` is "auto" (as stored; the demo in float32), or a torch dtype. Raises `ErrataError`
    when there is no such model or adapter, it cannot be reached, or its type has no family.
    """
    name = _given(path) or _given(name_or_path)
    if name is None:
        raise ErrataError("no model is named", "give a Hub name, a folder, or `demo`")
    if is_adapter(name):
        raise ErrataError(
            f"{name} is an adapter, not a model",
            f"load the model it was made for, with --adapter {name} (in Python: adapter=…)",
        )
    top, kind = _given(adapter), _given(adapter_kind)
    check_kind(kind)
    if adapter is None and kind is not None:
        raise ErrataError("a kind of adapter is given, but no adapter", "name it: --adapter DIR")
    tuned = None if top is None else find_tuned(top)
    whole = None if tuned is None else tuned.checkpoint
    merged = None if whole is not None else tuned
    config = None if merged is None else read_adapter(str(merged.adapter), kind)
    dtype = _dtype(dtype)
    if name == "demo" and whole is None and dtype == "auto":
        dtype = torch.float32
    model, tokenizer = pretrained(whole or name, dtype)
    if device is not None:
        model = to_device(model, device)
    given = [each if isinstance(each, Patch) else Patch.load(each) for each in patches]
    if merged is not None:
        model = merge_tuned(model, merged, config, allow_base)
    if tuned is not None:
        given = [patch for patch in given if patch not in tuned.below]
    check_finite(model)
    edited = EditedModel(model.eval(), tokenizer, name)
    for patch in given:
        edited.apply(patch, allow_base=allow_base)
    return edited


def _dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """Return a dtype by its name, or `auto`; raises `ErrataError` for others than weights have."""
    named = {str(each).removeprefix("torch."): each for each in DTYPES}
    found = named.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found == "auto" or found in DTYPES:
        return found
    raise ErrataError(
        f"there is no dtype {str(dtype)!r} for weights", f"choose one of auto, {', '.join(named)}"
    )


def _given(value: str | Path | None) -> str | None:
    """Return what was given, or None where that is nothing or blank."""
    return str(value).strip() or None if value is not None else None
