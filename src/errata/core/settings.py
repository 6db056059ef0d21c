"""Settings: frozen pydantic models whose field docstrings are their help.

The string literal under a field serves as comment, documentation, `--help` and recipe reference.
This module does not import torch, so that `--help` is fast.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from errata.core.errors import ErrataError

LARGEST_SEED = 2**62
"""Largest seed: generators take 64 bits, and text generation adds small numbers to its seed."""
LARGEST_NUMPY_SEED = 2**32 - 1
"""The largest seed of NumPy's legacy generator, which Transformers seeds as well."""


def is_none(value: object) -> bool:
    """Whether a value is unset, so that it is left out of records as before it existed."""
    return value is None


def is_true(value: object) -> bool:
    """Whether a switch has its default, so that it is left out of records as before it existed."""
    return value is True


class Settings(BaseModel):
    """Frozen named values; an unknown name or a wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    title: ClassVar[str] = ""
    """The name in error messages, for subclasses that are not called settings."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping; one `ErrataError` lists every invalid value."""
        try:
            return cls.model_validate(values)
        except UnicodeEncodeError as error:  # pydantic's messages cannot contain it
            raise ErrataError(
                f"{error.object!r:.80} contains a character that is not valid Unicode"
            ) from None
        except ValidationError as error:
            named = f"{cls.title} is" if cls.title else f"the settings of {cls.__name__} are"
            raise ErrataError(
                f"{named} not valid:\n{describe(error)}",
                *cls.nested_hints(error),
                f"known {'fields' if cls.title else 'settings'}: {', '.join(cls.model_fields)}",
            ) from None

    @classmethod
    def nested_hints(cls, error: ValidationError) -> list[str]:
        """Return a hint for each unknown name that is a field of nested settings."""
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


LIST_TYPES = ("list_type", "tuple_type", "sequence_str", "is_instance_of")
MAPPING_TYPES = ("dict_type", "model_type", "model_attributes_type")
MESSAGES = {
    "extra_forbidden": "is not known here",
    **dict.fromkeys(LIST_TYPES, "must be a list"),
    **dict.fromkeys(MAPPING_TYPES, "must be a mapping"),
}
"""Messages instead of pydantic's, which name Python types; `is_instance_of` means `Sequence`."""


def describe(error: ValidationError, within: str = "") -> str:
    """Return one line per problem of a pydantic error: field, problem, given value.

    `within` is a prefix for field names, where the validated value is part of a larger one.
    """
    lines = []
    for problem in error.errors():
        field = (within + ".".join(str(part) for part in problem["loc"])).rstrip(".")
        given = problem.get("input")
        message = MESSAGES.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if isinstance(given, ValueError):  # in place of a line that could not be parsed
            message = f"is not JSON: {given}"
        hidden = problem["type"] == "missing" or isinstance(given, dict | ValueError)
        shown = "" if hidden else f" (got {_shown(given)})"
        lines.append(f"  {field}{': ' if field else ''}{message}{shown}")
    return "\n".join(lines)


def _shown(given: object) -> str:
    """Return the start of a value's representation, or why it cannot be shown."""
    try:
        return f"{given!r:.80}"
    except RecursionError:
        return "a value that is nested too deeply"
