"""Settings that the closed-form methods share: the target search and the context prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from errata.core.errors import ErrataError
from errata.core.settings import LARGEST_SEED, Settings, is_none
from errata.methods.search_space import choice, log

if TYPE_CHECKING:
    from errata.patches.chat_form import ChatForm
    from errata.patches.edited_model import EditedModel

MAX_STEPS = 100
"""Limit of the steps of a search that goes on until targets hold, for models without a preset."""


class Search(Settings):
    """Settings of the target search (see `target_search`)."""

    model_config = ConfigDict(allow_inf_nan=False)

    steps: int = Field(25, ge=1)
    """Loss evaluations of the target search; there is one Adam step fewer."""
    max_steps: int | None = Field(None, ge=1, exclude_if=is_none)
    """Loss evaluations at most, where after `steps` the target does not hold (default: `steps`)."""
    learning_rate: float = Field(0.5, gt=0)
    """Adam's learning rate."""
    weight_decay: float = Field(0.5, ge=0)
    """Weight of the penalty ‖δ‖ / ‖h₀‖² in the loss."""
    clamp: float = Field(4.0, gt=0)
    """Maximum ‖δ‖ as a multiple of ‖h₀‖."""
    kl_weight: float = Field(0.0625, ge=0)
    """Weight of the KL divergence at the essence prompt in the loss."""
    stop_at: float = Field(0.05, ge=0)
    """Loss below which the search of a request stops."""
    loss_block: int | None = Field(None, ge=0)
    """Block after which logits are computed for the loss (default: the last)."""
    essence_prompt: str = "{} is a"
    """Prompt whose next-token distribution should not change; {} is the subject."""
    precision: Literal["full", "tf32", "autocast"] = "full"
    """Products of the search: float32 (full), or TF32 (CUDA) or bfloat16, which are faster."""

    @property
    def most_steps(self) -> int:
        """The number of loss evaluations at most."""
        return max(self.steps, self.max_steps or 0)

    def warnings(self) -> tuple[str, ...]:
        """Return a warning if products are inexact."""
        products = f"target values are searched with {self.precision} products: "
        inexact = (f"{products}faster on some devices, and not exact",)
        return () if self.precision == "full" else inexact

    @field_validator("essence_prompt")
    @classmethod
    def _one_slot(cls, prompt: str) -> str:
        if prompt.count("{}") != 1:
            raise ValueError("needs exactly one {} for the subject")
        return prompt


SEARCH_SPACE = (
    log("search.clamp", 0.25, 8.0),
    log("search.learning_rate", 0.05, 1.0),
    log("search.weight_decay", 1e-3, 2.0),
    choice("search.steps", 10, 20, 40),
)
"""The dials of the target search."""


def exact_steps(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return nested settings in which `steps` without `max_steps` is the number of steps."""
    search = given.get("search")
    if not isinstance(search, Mapping) or "steps" not in search:
        return given
    return {**given, "search": {"max_steps": None, **search}}


class Contexts(Settings):
    """Context prefixes put before a prompt, so that an edit generalises (see `prefixes`)."""

    prefixes: tuple[str, ...] | None = None
    """Context prefixes (default: sampled from the model)."""
    prefix_lengths: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (10, 10, 10, 10, 10)
    """Lengths in tokens of the sampled prefixes, one each."""
    prefix_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed for sampling prefixes."""
    template: Literal["auto", "none", "chat", "both"] | None = Field(None, exclude_if=is_none)
    """Edit the request as plain text (none), as a user's message in a chat, or as both; auto is
    both if the tokenizer has a chat template (default: auto, but none for published settings)."""
    system: str | None = Field(None, exclude_if=is_none)
    """System message of the chat (default: the template's own)."""

    @model_validator(mode="after")
    def _system_in_chat(self) -> Self:
        if self.system is not None and self.template in (None, "none"):
            raise ValueError("a system message needs a template: auto, chat or both")
        return self

    def template_for(self, edited: EditedModel) -> Literal["none", "chat", "both"] | None:
        """Return the template for a model: `auto` is both, if there is a choice."""
        from errata.patches.chat_form import ChatForm

        if self.template != "auto":
            return self.template
        usable = ChatForm(self.system).is_usable(edited.tokenizer)
        return "both" if usable and edited.chat is None else None

    def forms(self, edited: EditedModel) -> list[ChatForm | None]:
        """Return the forms in which a request is edited, by default as the model is asked."""
        from errata.patches.chat_form import ChatForm

        chat = ChatForm(self.system)
        forms: dict[str | None, list[ChatForm | None]]
        forms = {None: [edited.chat], "none": [None], "chat": [chat], "both": [None, chat]}
        return forms[self.template_for(edited)]


def ascending(blocks: Sequence[int]) -> tuple[int, ...]:
    """Return blocks in order; raises `ValueError` for none, and for one that is there twice."""
    if not blocks or len(set(blocks)) < len(blocks):
        raise ValueError("name at least one block, and none twice")
    return tuple(sorted(blocks))


def blocks_by_depth(first: float, last: float, block_count: int) -> tuple[int, ...]:
    """Return the blocks from one fraction of the depth to another."""
    start, end = (min(int(share * block_count), block_count - 1) for share in (first, last))
    return tuple(range(start, end + 1))


def check_blocks(blocks: Sequence[int], loss_block: int | None, block_count: int) -> None:
    """Raise `ErrataError` for blocks that a model of this depth does not have."""
    beyond = [block for block in blocks if not 0 <= block < block_count]
    if beyond:
        raise ErrataError(
            f"there is no block {','.join(map(str, beyond))}: "
            f"the model has blocks 0 to {block_count - 1}",
            f"choose blocks between 0 and {block_count - 1}",
        )
    if loss_block is not None and loss_block >= block_count:
        raise ErrataError(
            f"the loss cannot be read after block {loss_block}: "
            f"the model has blocks 0 to {block_count - 1}",
            f"choose --loss-block between 0 and {block_count - 1}, or leave it out for the last",
        )
