"""`EditedModel`: a model, its tokenizer and a stack of edits; and `load`.

The weights are always base + weight patches in order, computed from saved originals, so undoing
any patch restores the model without it bit for bit. Module patches are hooks in the order of the
stack; prompt patches are applied to prompts by `EditedModel.rendered` (see `prompting`).
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

from errata.core.errors import ErrataError, Hint
from errata.core.progress import Say, say_nothing
from errata.models.families import family_of, positions_of, weight_of
from errata.models.generation import continuations
from errata.models.gguf import quantisation
from errata.models.identity import check_finite, model_hash, same_weights
from errata.models.loading import check_device, dtype_named, first_device, pretrained, to_device
from errata.models.tokenizer import limit_ids
from errata.models.tokens import encode
from errata.patches.adapter import check_kind, find_tuned, is_adapter, merge_tuned, read_adapter
from errata.patches.base import ALLOW_BASE, Base, Edit, load_edit
from errata.patches.chat_form import ChatForm
from errata.patches.module_patch import ModulePatch
from errata.patches.prompting import Prompting
from errata.patches.weight_patch import (
    WeightPatch,
    change_lost,
    check_range,
    copied,
    weight_patches,
    write,
)


@dataclass(eq=False, repr=False)
class EditedModel(Prompting):
    """A model with a stack of edits of any kind, in the order in which they were applied."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Name or path from which it was loaded; presets and corpora are looked up by it."""
    chat: ChatForm | None = field(default=None, kw_only=True)
    """How prompts are asked: as messages in a chat, or as they are (None)."""
    context: str = field(default="", init=False)
    """Text put before every prompt."""
    patches: list[Edit] = field(default_factory=list, init=False)
    _originals: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _handles: list[RemovableHandle] = field(default_factory=list, init=False, repr=False)
    _shown: list[Edit] = field(default_factory=list, init=False, repr=False)
    """The edits in effect: the stack, or none within `without_patches`."""

    def __post_init__(self) -> None:
        family_of(self.model)
        limit_ids(self.tokenizer, self.model)

    def __repr__(self) -> str:
        """Short representation: name, type, size, dtype and edits, without the modules."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        kind = f"{self.model.config.model_type}, {size:,} parameters, {self.model.dtype}"
        return f"EditedModel({self.name!r}: {kind}; patches: {self.patches})"

    @cached_property
    def base(self) -> Base:
        """Identity of the unedited model; hashed once, on first use."""
        with self.without_patches():
            weights = model_hash(self.model)
        return Base(
            name=self.name,
            model_type=self.model.config.model_type,
            weights=weights,
            quantisation=quantisation(self.model),
        )

    def base_weight(self, name: str) -> Tensor:
        """Return a weight of the unedited model, not copied."""
        original = self._originals.get(name)
        return weight_of(self.model, name)[1] if original is None else original

    @property
    def weight_patches(self) -> list[WeightPatch]:
        """The weight patches of the stack, in order."""
        return weight_patches(self.patches)

    def apply(self, patch: Edit, *, allow_base: bool = False) -> dict[str, float]:
        """Apply an edit on top of the stack; return, per weight, the share of Δ lost to rounding.

        Raises `ErrataError` if the edit was made for another base, unless `allow_base`, or if a
        weight would overflow the model's dtype.
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
        """Undo an edit, by default the last one, and return it.

        Raises `ErrataError` if there is no edit, or the given one is not applied.
        """
        if not self.patches or (patch is not None and patch not in self.patches):
            raise ErrataError(
                "there is no such patch to undo", "the applied patches are in `.patches`"
            )
        index = len(self.patches) - 1 if patch is None else self.patches.index(patch)
        taken = self.patches.pop(index)
        self._show(self.patches)
        held = {name for other in self.weight_patches for name in other.updates}
        self._originals = {name: tensor for name, tensor in self._originals.items() if name in held}
        return taken

    @contextmanager
    def without_patches(self) -> Iterator[None]:
        """Disable all edits within a `with` block."""
        before = self._shown
        try:
            self._show([])
            yield
        finally:
            self._show(before)

    def bake(self) -> None:
        """Merge the weight patches into the base weights; other patches stay applied."""
        self.patches = [patch for patch in self.patches if not isinstance(patch, WeightPatch)]
        self._originals = {}
        self._show(self.patches)
        self.__dict__.pop("base", None)

    def _show(self, patches: Sequence[Edit]) -> None:
        """Put exactly these edits into effect: weights, module hooks and prompt templates."""
        write(self.model, self._originals, weight_patches(patches))
        for handle in self._handles:
            handle.remove()
        self._handles, self._shown = [], list(patches)
        for patch in patches:
            if isinstance(patch, ModulePatch):
                self._handles += patch.install(self.model)

    def generate(self, prompt: str, max_new_tokens: int = 32, *, render: bool = True) -> str:
        """Continue a prompt by greedy decoding up to end of sequence; return the new text.

        With `render=False`, prompt patches are not applied to the prompt. Raises `ErrataError` if
        the model's context leaves no room for an answer.
        """
        text = self.rendered(prompt) if render else prompt
        length, positions = len(encode(self.tokenizer, text).ids), positions_of(self.model)
        if max_new_tokens < 1 or length >= positions:
            raise ErrataError(
                f"there is no room for an answer: the prompt has {length} tokens, the answer may "
                f"have {max_new_tokens}, and the model's context is {positions}",
                Hint(
                    "shorten the prompt, or increase max_new_tokens",
                    "shorten the prompt, or increase --max-new-tokens",
                ),
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
    to_edit: bool = False,
    say: Say = say_nothing,
) -> EditedModel:
    """Load a model from the Hub, a folder, a GGUF file, `smollm2` or `demo`; apply patches.

    `demo` is the embedded model, `smollm2` is in a package of its own. A GGUF file is dequantised
    and kept in the cache, in the dtype that represents its values; `say` reports it.

    `path` is a checkpoint to load instead of `name_or_path`, which then only names the model;
    empty or blank means none. `adapter` is a PEFT LoRA or DoRA folder, blank for none;
    `adapter_kind` ("lora" or "dora") is the kind that it must have. It is merged into the weights
    in the model's dtype, so that the model can be edited like any other; patches then belong to
    the merged weights. `adapter` may also be a run of `errata tune` or a checkpoint from one,
    which is loaded instead of the model. The patches on which `errata tune` was run are applied
    below the adapter and not a second time.

    `dtype` is "auto" (as stored; float32 for the demo), or a torch dtype or its name; the device
    "auto" is the first GPU, or the CPU without one. Raises `ErrataError` for a model or adapter
    that cannot be found, and for a type that is not supported or, with `to_edit`, not edited.
    """
    name = _given(path) or _given(name_or_path)
    if name is None:
        raise ErrataError(
            "no model is given", "give a Hub name, a folder, a GGUF file, `smollm2` or `demo`"
        )
    if is_adapter(name):
        raise ErrataError(
            f"{name} is an adapter, not a model",
            Hint(
                f"load the model it was made for, with adapter={name!r}",
                f"load the model it was made for, with --adapter {name}",
            ),
        )
    top, kind = _given(adapter), _given(adapter_kind)
    check_kind(kind)
    if adapter is None and kind is not None:
        raise ErrataError(
            "a kind of adapter is given, but no adapter",
            Hint("give one: adapter=DIR", "give one: --adapter DIR"),
        )
    tuned = None if top is None else find_tuned(top)
    whole = None if tuned is None else tuned.checkpoint
    merged = None if whole is not None else tuned
    config = None if merged is None else read_adapter(str(merged.adapter), kind)
    dtype = dtype_named(dtype)
    if name == "demo" and whole is None and dtype == "auto":
        dtype = torch.float32
    given = [each if isinstance(each, Edit) else load_edit(each) for each in patches]
    device = first_device() if device == "auto" else device
    if device is not None:
        check_device(device)
    model, tokenizer = pretrained(whole or name, dtype, say, to_edit=to_edit)
    if device is not None:
        model = to_device(model, device)
    if merged is not None:
        model = merge_tuned(model, merged, config, allow_base)
    if tuned is not None:
        given = [patch for patch in given if patch not in tuned.below]
    check_finite(model)
    edited = EditedModel(model.eval(), tokenizer, name)
    for below in () if tuned is None else tuned.below:
        if not isinstance(below, WeightPatch):  # weight patches are part of the tuned weights
            edited.apply(below, allow_base=True)
    for patch in given:
        edited.apply(patch, allow_base=allow_base)
    return edited


def _given(value: str | Path | None) -> str | None:
    """Return a value as text, None if it is None or blank."""
    return str(value).strip() or None if value is not None else None
