"""Reference texts about subjects that have a given target: ROME's `attribute_snippets.json`.

    [{"relation_id", "target_id", "samples": [{"name", "text"}, …]}, …]

Generated text is compared with the texts of the new target (consistency); the texts about the
subject itself should keep a low perplexity (essence).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from errata.core.errors import ErrataError
from errata.core.settings import describe
from errata.data.case import Case
from errata.data.records import Fields, records_of


class _Sample(Fields):
    name: str
    text: str


class _Group(Fields):
    relation_id: str
    target_id: str
    samples: list[_Sample]


References = dict[tuple[str, str], list[tuple[str, str]]]
"""(name, text) pairs by relation and target."""


def read_references(path: Path) -> References:
    """Read the file; raises `ErrataError` if it has another structure."""
    found: References = {}
    for number, record in enumerate(records_of(path), start=1):
        try:
            group = _Group.model_validate(record)
        except ValidationError as error:
            raise ErrataError(
                f"{path} is not a file of reference texts; record {number}:\n{describe(error)}",
                "use the structure of attribute_snippets.json",
            ) from None
        texts = [(sample.name, sample.text) for sample in group.samples]
        found.setdefault((group.relation_id, group.target_id), []).extend(texts)
    return found


def with_references(case: Case, record: Any, references: References) -> Case:
    """Return the case with the reference texts of its new target."""
    rewrite = record.get("requested_rewrite", {})
    key = rewrite.get("relation_id"), rewrite.get("target_new", {}).get("id")
    texts = references.get(key, [])
    about = [text for name, text in texts if name == case.request.subject]
    return case.model_copy(
        update={"references": tuple(text for _, text in texts), "essence": tuple(about)}
    )
