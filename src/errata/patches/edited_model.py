"""`EditedModel`: a model, its tokenizer and the stack of edits on it; and `load`.

The weights are always base + weight patches in order, computed from saved originals, so undoing
any of them restores, bit for bit, the model without it. Module patches are hooks in the order of
the stack; prompt patches change the prompts that go through `EditedModel.rendered`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.families import family_of, positions_of, weight_of
from errata.models.generation import continuations
from errata.models.identity import check_finite, model_hash, same_weights
from errata.models.loading import check_device, pretrained, to_device
from errata.models.tokens import encode
from errata.patches.adapter import check_kind, find_tuned, is_adapter, merge_tuned, read_adapter
from errata.patches.base import ALLOW_BASE, Base, Edit, load_edit
from errata.patches.module_patch import ModulePatch
from errata.patches.prompt_patch import PromptPatch
from errata.patches.weight_patch import (
    WeightPatch,
    change_lost,
    check_range,
    copied,
    weight_patches,
    write,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights may be held in."""


@dataclass(eq=False, repr=False)
class EditedModel:
    """A model with a stack of edits of any kind on it; the first was applied first."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The name or path that it was loaded by; presets and corpora are found by it."""
    patches: list[Edit] = field(default_factory=list, init=False)
    _originals: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _handles: list[RemovableHandle] = field(default_factory=list, init=False, repr=False)
    _shown: list[Edit] = field(default_factory=list, init=False, repr=False)
    """The edits that act now: the stack, or none within `without_patches`."""

    def __post_init__(self) -> None:
        family_of(self.model)

    def __repr__(self) -> str:
        """Name the model and its edits without its modules."""
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

    @property
    def weight_patches(self) -> list[WeightPatch]:
        """The weight patches of the stack, in order."""
        return weight_patches(self.patches)

    @property
    def prompt_patches(self) -> list[PromptPatch]:
        """The prompt patches that act now, in order."""
        return [patch for patch in self._shown if isinstance(patch, PromptPatch)]

    def rendered(self, prompt: str) -> str:
        """Return a prompt with every prompt patch applied; the last of them is outermost."""
        for patch in self.prompt_patches:
            prompt = patch.render(prompt)
        return prompt

    def rendered_span(self, span: tuple[int, int]) -> tuple[int, int]:
        """Return where a character range of a prompt is in the rendered prompt."""
        offset = sum(patch.offset for patch in self.prompt_patches)
        return span[0] + offset, span[1] + offset

    def apply(self, patch: Edit, *, allow_base: bool = False) -> dict[str, float]:
        """Put an edit on top; return, per weight, the share of the change that the dtype loses.

        Raises `ErrataError` when the edit was made for another base, unless `allow_base`.
        """
        expected = patch.provenance.base
        if not allow_base and not same_weights(expected.weights, self.base.weights):
            raise ErrataError(
                f"this patch was made for {expected.name} ({expected.weights[:12]}), "
                f"not for {self.name} ({self.base.weights[:12]})",
                *ALLOW_BASE,
            )
        before = self._originals
        names = tuple(patch.updates) if isinstance(patch, WeightPatch) else ()
        self._originals = copied(self.model, names, before)
        try:
            self._show([*self.patches, patch])
            check_range(self.model, names)
        except BaseException:
            self._show(self.patches)
            self._originals = before
            raise
        self.patches.append(patch)
        originals = {name: self._originals[name] for name in names}
        return change_lost(self.model, originals, self.weight_patches)

    def undo(self, patch: Edit | None = None) -> Edit:
        """Undo an edit, the last one unless another is named; return it.

        Raises `ErrataError` when there is none, or the named one is not applied.
        """
        if not self.patches or (patch is not None and patch not in self.patches):
            raise ErrataError(
                "there is no such patch to undo", "the model's patches are in `.patches`"
            )
        index = len(self.patches) - 1 if patch is None else self.patches.index(patch)
        taken = self.patches.pop(index)
        self._show(self.patches)
        held = {name for other in self.weight_patches for name in other.updates}
        self._originals = {name: tensor for name, tensor in self._originals.items() if name in held}
        return taken

    @contextmanager
    def without_patches(self) -> Iterator[None]:
        """Show the unedited model for the time of a `with` block."""
        before = self._shown
        try:
            self._show([])
            yield
        finally:
            self._show(before)

    def bake(self) -> None:
        """Make weight patches part of the base weights; module and prompt patches stay on."""
        self.patches = [patch for patch in self.patches if not isinstance(patch, WeightPatch)]
        self._originals = {}
        self._show(self.patches)
        self.__dict__.pop("base", None)

    def _show(self, patches: Sequence[Edit]) -> None:
        """Let exactly these edits act: write the weights, install the hooks, choose the prompts."""
        write(self.model, self._originals, weight_patches(patches))
        for handle in self._handles:
            handle.remove()
        self._handles, self._shown = [], list(patches)
        for patch in patches:
            if isinstance(patch, ModulePatch):
                self._handles += patch.install(self.model)

    def generate(self, prompt: str, max_new_tokens: int = 32, *, render: bool = True) -> str:
        """Continue a prompt greedily until the model ends it; return the new text.

        `render` says whether prompt patches are still to be applied to the prompt.
        """
        text = self.rendered(prompt) if render else prompt
        length, positions = len(encode(self.tokenizer, text).ids), positions_of(self.model)
        if max_new_tokens < 1 or length >= positions:
            raise ErrataError(
                f"there is no room for an answer: the prompt has {length} tokens, "
                f"{max_new_tokens} may follow, the model reads {positions}",
                "shorten the prompt, or let more tokens follow",
            )
        (answer,) = continuations(self.model, self.tokenizer, [text], max_new_tokens)
        return answer


def load(
    name_or_path: str,
    *,
    path: str | Path | None = None,
    adapter: str | Path | None = None,
    adapter_kind: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    patches: Sequence[Edit | str | Path] = (),
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
    given = [each if isinstance(each, Edit) else load_edit(each) for each in patches]
    if device is not None:
        check_device(device)
    model, tokenizer = pretrained(whole or name, dtype)
    if device is not None:
        model = to_device(model, device)
    if merged is not None:
        model = merge_tuned(model, merged, config, allow_base)
    if tuned is not None:
        given = [patch for patch in given if patch not in tuned.below]
    check_finite(model)
    edited = EditedModel(model.eval(), tokenizer, name)
    for below in () if tuned is None else tuned.below:
        if not isinstance(below, WeightPatch):  # those are part of what was tuned
            edited.apply(below, allow_base=True)
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
