"""`ModulePatch`: an edit that wraps the forward of modules; its state is tensors, never code.

A file names the forward of each module, which must be one of `FORWARDS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.models.hooks import first_tensor
from errata.patches.base import Edit, Provenance
from errata.patches.codebook import Codebook

Forward = Codebook
"""The type of wrapped forwards; a union, once there are more."""
FORWARDS: dict[str, type[Forward]] = {Codebook.name: Codebook}
"""The known forwards by their names in files."""


@dataclass(frozen=True, eq=False, repr=False)
class ModulePatch(Edit):
    """Wrapped forwards by the module's full path, with their provenance."""

    kind: ClassVar[str] = "module"
    state_fields: ClassVar[tuple[str, ...]] = ("forwards",)
    modules: Mapping[str, Forward]
    provenance: Provenance

    @property
    def places(self) -> tuple[str, ...]:
        """Paths of the wrapped modules, sorted."""
        return tuple(sorted(self.modules))

    def tensors(self) -> dict[str, Tensor]:
        """Return each forward's tensors, named `<module>.<name>`."""
        return {
            f"{path}.{name}": tensor
            for path, forward in self.modules.items()
            for name, tensor in forward.tensors().items()
        }

    def header(self) -> dict[str, Any]:
        """Return the format, the kind and the name of each module's forward."""
        forwards = {path: forward.name for path, forward in self.modules.items()}
        return {"format": 2, "kind": self.kind, "forwards": forwards}

    @classmethod
    def read(
        cls,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        provenance: Provenance,
        path: str,
    ) -> Self:
        """Build a module patch; raises `ErrataError` for unknown forwards or damaged state."""
        named = state["forwards"]
        if not isinstance(named, dict) or not named:
            raise ErrataError(f"{path} wraps no module", "the file is damaged")
        parts: dict[str, dict[str, Tensor]] = {module: {} for module in named}
        for name, tensor in tensors.items():
            module, _, part = name.rpartition(".")
            if module not in parts:
                raise ErrataError(
                    f"{path} contains {name}, which is not part of a patch", "the file is damaged"
                )
            parts[module][part] = tensor
        for forward in named.values():
            if not isinstance(forward, str) or forward not in FORWARDS:
                raise ErrataError(
                    f"{path} has an unknown forward: {forward!r:.40}",
                    f"known forwards: {', '.join(FORWARDS)}; update errata",
                )
        found = {module: FORWARDS[named[module]].of(held) for module, held in parts.items()}
        return cls(dict(sorted(found.items())), provenance)

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Wrap the modules within a `with` block."""
        handles = self.install(model)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def install(self, model: PreTrainedModel) -> list[RemovableHandle]:
        """Wrap the modules until the handles are removed; raises `ErrataError` for missing ones."""
        found = {path: _module(model, path) for path in self.modules}
        return [
            found[path].register_forward_hook(_Hook(forward), with_kwargs=True)
            for path, forward in self.modules.items()
        ]


@dataclass(frozen=True)
class _Hook:
    """A forward hook; an object, so that a deep copy of the model has its own copy of it."""

    forward: Forward

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Any:
        inputs = args[0] if args else kwargs.get("hidden_states")
        state = first_tensor(out)
        if not isinstance(inputs, Tensor) or not isinstance(state, Tensor):
            raise ErrataError(
                f"cannot wrap a {type(module).__name__}: it does not map one tensor to another",
                "wrap a module within a block, such as its MLP",
            )
        state = self.forward(inputs, state)
        return (state, *out[1:]) if isinstance(out, tuple) else state


def _module(model: PreTrainedModel, path: str) -> nn.Module:
    module: nn.Module | None = None
    if path:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
    if module is None or isinstance(module, nn.ModuleList):
        raise ErrataError(
            f"the model has no module {path!r} that can be wrapped",
            "was the patch made for another architecture?",
        )
    return module
