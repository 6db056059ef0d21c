"""Reading untrusted YAML, restricted to plain values, lists and mappings."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 50
"""Maximum nesting depth; recipes need five levels."""


class YamlError(ValueError):
    """Text that is not plain YAML, with the number of the line where that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem
        self.line = line


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


def parse_yaml(text: str) -> Any:
    """Parse YAML; raises `YamlError` for anchors, tags, duplicate keys and deep nesting."""
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
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise YamlError(problem, None if where is None else where.line + 1) from None
