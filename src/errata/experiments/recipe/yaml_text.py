"""The YAML of recipes, restricted to plain values, lists and mappings, and changes to it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from errata.core.errors import ErrataError

DEEPEST = 50
"""Maximum nesting depth of a recipe; five levels are needed."""


_EXPONENT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+")


class _Loader(yaml.SafeLoader):
    """A loader of plain YAML for which duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; raises `MarkedYAMLError` for a duplicate key."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} occurs twice", problem_mark=node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def plain_yaml(text: str, name: str) -> Any:
    """Read YAML; raises `ErrataError` for anchors, tags, duplicate keys and deep nesting."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError("it is nested too deeply")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError("anchors and aliases are not supported")
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ErrataError(
            f"{name}{line} is not valid YAML for a recipe: {reason}",
            "a recipe is plain YAML: names, numbers, lists and mappings",
        ) from None


def change_value(raw: dict[str, Any], change: str, example: str = "edit.method=rome") -> None:
    """Apply one change `a.b=c` to nested mappings; `c` is YAML, or a number like `1e-4`.

    Raises `ErrataError`, with `example` as a hint, for a change that cannot be read or applied.
    """
    path, sign, value = change.partition("=")
    parts = path.strip().split(".")
    if not sign or not all(parts):
        raise ErrataError(f"cannot parse the change {change!r}", f"write it like --set {example}")
    new = _value(value, f"--set {change}")
    place: Any = raw
    for number, part in enumerate(parts):
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ErrataError(
                    f"{'.'.join(parts[:number])} is a list of length {len(place)}, and {part!r} is "
                    "not an index into it",
                    f"count from 0, as in --set {'.'.join(parts[:number])}.0.limit=5",
                )
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise ErrataError(
                f"cannot set {path}: {'.'.join(parts[:number])} is {place!r:.40}, "
                "which has no fields"
            )
        if number == len(parts) - 1:
            place[key] = new
            return
        if number == 0 and isinstance(place.get(key), str) and key == "model":
            place[key] = {"name": place[key]}
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})


def _value(text: str, name: str) -> Any:
    """Read a value as YAML, but `1e-4`, which is a string in YAML, as a number."""
    found = plain_yaml(text, name)
    if isinstance(found, str) and _EXPONENT.fullmatch(found):
        return float(found)
    return found
