"""Settings: frozen pydantic models whose field docstrings are their help.

The string literal under a field is comment, documentation, `--help` and recipe
reference at once. Nothing here imports torch, so that `--help` stays instant.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from errata.core.errors import ErrataError

LARGEST_SEED = 2**62
"""Random generators take no seeds beyond 64 bits, and texts count on from theirs."""
LARGEST_NUMPY_SEED = 2**32 - 1
"""The largest seed of NumPy's legacy generator, which Transformers seeds as well."""


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
        except UnicodeEncodeError as error:  # pydantic's messages hold valid text only
            raise ErrataError(
                f"{error.object!r:.80} contains a character that is not valid Unicode"
            ) from None
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
        shown = "" if hidden else f" (got {_shown(given)})"
        lines.append(f"  {field}{': ' if field else ''}{message}{shown}")
    return "\n".join(lines)


def _shown(given: object) -> str:
    """Return the beginning of a value, or why it cannot be shown."""
    try:
        return f"{given!r:.80}"
    except RecursionError:
        return "a value that is nested too deeply"
