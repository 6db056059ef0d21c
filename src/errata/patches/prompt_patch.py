"""`PromptPatch`: an in-context edit: text around the prompt, while the model is unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.patches.base import Edit, Provenance

PLACE = "{prompt}"
"""Placeholder of the prompt in a template."""


@dataclass(frozen=True, eq=False, repr=False)
class PromptPatch(Edit):
    """A template for prompts, such as `"New fact: the sea is dry.\\n{prompt}"`."""

    kind: ClassVar[str] = "prompt"
    state_fields: ClassVar[tuple[str, ...]] = ("template",)
    template: str
    """Text that contains `{prompt}` once; other braces are literal."""
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.template.count(PLACE) != 1:
            raise ErrataError(
                f"the template {self.template!r:.60} must contain {PLACE} exactly once",
                f"write {PLACE} in place of the prompt",
            )

    @property
    def places(self) -> tuple[str, ...]:
        """Empty: no weight or module changes."""
        return ()

    @property
    def summary(self) -> str:
        """The template, shortened."""
        text = " ".join(self.template.split())
        return text if len(text) <= 60 else f"{text[:59]}…"

    def render(self, prompt: str) -> str:
        """Return the template with the prompt inserted."""
        before, _, after = self.template.partition(PLACE)
        return f"{before}{prompt}{after}"

    @property
    def offset(self) -> int:
        """Where the prompt begins in a rendered prompt, in characters."""
        return self.template.index(PLACE)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: the template is in the header."""
        return {}

    def header(self) -> dict[str, Any]:
        """Return format, kind and template."""
        return {"format": 2, "kind": self.kind, "template": self.template}

    @classmethod
    def read(
        cls,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        provenance: Provenance,
        path: str,
    ) -> Self:
        """Build a prompt patch from the template in a file's header."""
        if tensors or not isinstance(state["template"], str):
            raise ErrataError(f"{path} has no template", "the file is damaged")
        return cls(state["template"], provenance)

    def on(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Raise `ErrataError`: a Transformers model receives tokens, not prompts."""
        raise ErrataError(
            "a prompt patch cannot be applied to a Transformers model, which receives tokens",
            "apply it to an EditedModel: errata.load(…)",
        )
