"""Settings: frozen pydantic models whose field docstrings are their help.

The string literal under a field is comment, documentation, `--help` and recipe
reference at once. Nothing here imports torch, so that `--help` stays instant.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from errata.core.errors import ErrataError

LARGEST_SEED = 2**62
"""Random generators take no seeds beyond 64 bits, and texts count on from theirs."""


class Settings(BaseModel):
    """A frozen set of named values; an unknown name or a wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    title: ClassVar[str] = ""
    """What a message calls it, where it is more than settings."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping; every wrong value is named in one `ErrataError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            named = f"{cls.title} is" if cls.title else f"the settings of {cls.__name__} are"
            raise ErrataError(
                f"{named} not valid:\n{describe(error)}",
                *cls.inside(error),
                f"known {'fields' if cls.title else 'settings'}: {', '.join(cls.model_fields)}",
            ) from None

    @classmethod
    def inside(cls, error: ValidationError) -> list[str]:
        """Say of names that are not known here in which of the settings here they are."""
        unknown = [each["loc"][0] for each in error.errors() if each["type"] == "extra_forbidden"]
        return [
            f"{name} is one of {field}: write {field}.{name}, or {field}: {{{name}: …}}"
            for name in unknown
            for field, info in cls.model_fields.items()
            if isinstance(info.annotation, type)
            and issubclass(info.annotation, Settings)
            and name in info.annotation.model_fields
        ]

    def with_values(self, **values: Any) -> Self:
        """Return a copy with some values changed, validated like a new one."""
        return type(self).of({**self.model_dump(), **values})


class Search(Settings):
    """How target values are searched (see `values`)."""

    model_config = ConfigDict(allow_inf_nan=False)

    steps: int = Field(25, ge=1)
    """Evaluations of the loss; there is one Adam step fewer."""
    learning_rate: float = Field(0.5, gt=0)
    """Adam's learning rate."""
    weight_decay: float = Field(0.5, ge=0)
    """Weight of the change's length over the squared length of what stood there."""
    clamp: float = Field(4.0, gt=0)
    """The change is kept within this many lengths of what stood there."""
    kl_weight: float = Field(0.0625, ge=0)
    """Weight of the KL divergence that keeps the subject's essence."""
    stop_at: float = Field(0.05, ge=0)
    """A request is done when its loss falls below this."""
    loss_block: int | None = Field(None, ge=0)
    """Read the answer after this block instead of the last one."""
    essence_prompt: str = "{} is a"
    """The text whose next-token distribution should stay; {} is the subject."""
    precision: Literal["full", "tf32", "autocast"] = "full"
    """Float32, also where weights are narrower; products in TF32 (CUDA) or bfloat16 are faster."""

    @field_validator("essence_prompt")
    @classmethod
    def _one_slot(cls, prompt: str) -> str:
        if prompt.count("{}") != 1:
            raise ValueError("needs exactly one {} for the subject")
        return prompt


class Contexts(Settings):
    """Texts put before a prompt, so that an edit holds in any company (see `prefixes`)."""

    prefixes: tuple[str, ...] | None = None
    """A fixed list of prefixes; when not given they are sampled from the model."""
    prefix_lengths: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (10, 10, 10, 10, 10)
    """Sample one prefix per number, that many tokens long."""
    prefix_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of their sampling."""


A_LIST = ("list_type", "tuple_type", "sequence_str", "is_instance_of")
A_MAPPING = ("dict_type", "model_type", "model_attributes_type")
WORDS = {
    "extra_forbidden": "is not known here",
    **dict.fromkeys(A_LIST, "must be a list"),
    **dict.fromkeys(A_MAPPING, "must be a mapping"),
}
"""What is said in place of pydantic's words, which name types; only of `Sequence` are instances."""


def describe(error: ValidationError, within: str = "") -> str:
    """Return one line per problem of a pydantic error: the field, what is wrong, what was given.

    `within` is the path of the thing that was read, where that is a part of something larger.
    """
    lines = []
    for problem in error.errors():
        field = (within + ".".join(str(part) for part in problem["loc"])).rstrip(".")
        given = problem.get("input")
        message = WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if isinstance(given, ValueError):  # what stands for a line that could not be read
            message = f"is not JSON: {given}"
        hidden = problem["type"] == "missing" or isinstance(given, dict | ValueError)
        shown = "" if hidden else f" (got {given!r:.80})"
        lines.append(f"  {field}{': ' if field else ''}{message}{shown}")
    return "\n".join(lines)
