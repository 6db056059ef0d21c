"""The YAML of recipes and changes to it."""

from __future__ import annotations

import re
from typing import Any

from errata.core.errors import ErrataError
from errata.core.yaml_text import YamlError, parse_yaml

_EXPONENT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+")


def plain_yaml(text: str, name: str) -> Any:
    """Read YAML; raises `ErrataError` for anchors, tags, duplicate keys and deep nesting."""
    try:
        return parse_yaml(text)
    except YamlError as error:
        line = "" if error.line is None else f", line {error.line}"
        raise ErrataError(
            f"{name}{line} is not valid YAML for a recipe: {error.problem}",
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
