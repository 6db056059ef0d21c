"""Text corpora for statistics: the demo's text, files, or a Hugging Face dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errata.assets import WORLD_DIR
from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.data.hub import hub_rows


@dataclass(frozen=True)
class NonBlank:
    """The non-blank texts of a dataset's rows, read lazily on iteration."""

    name: str
    rows: Iterable[Any]

    def __iter__(self) -> Iterator[str]:
        try:
            for row in self.rows:
                if (text := _text_of(row)).strip():
                    yield text
        except TypeError as error:
            raise ErrataError(
                f"cannot read the corpus {self.name}: {error}",
                "name a dataset whose records have a `text` field",
            ) from None


@dataclass(frozen=True)
class Corpus:
    """A named collection of texts."""

    name: str
    texts: Iterable[str]
    """Can be iterated over more than once."""

    @cached_property
    def digest(self) -> str:
        """Hash of the text, computed once."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]


def read_corpus(name: str | Corpus) -> Corpus:
    """Read `demo`, a .txt file (one text per line), a .jsonl file (field `text`) or hf:NAME:CONFIG.

    A corpus that was read before is returned as it is. Raises `ErrataError` for a
    corpus that cannot be read or contains no text.
    """
    if isinstance(name, Corpus):
        return name
    texts: Iterable[str]
    if name.startswith("hf:"):
        texts = _hub_texts(*name.removeprefix("hf:").split(":")[:2])
    else:
        path = WORLD_DIR / "text.jsonl" if name == "demo" else Path(name)
        texts = [text for text in _file_texts(path) if text.strip()]
    if next(iter(texts), None) is None:
        raise ErrataError(
            f"the corpus {name} contains no text",
            "give a .txt file with one text per line, or a .jsonl file",
        )
    return Corpus(name, texts)


def _file_texts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        if path.suffix == ".jsonl":
            return [_text_of(parse_json(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ErrataError(
            f"cannot read the corpus {path}: {reason(error)}",
            "give a .txt file with one text per line, a .jsonl file with `text` in every record, "
            "or hf:DATASET:CONFIG",
        ) from None
    return lines


def _text_of(record: Any) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise TypeError(f"a record has no string field `text`: {record!r:.60}")
    return text


def _hub_texts(dataset: str, config: str | None = None) -> NonBlank:
    return NonBlank(f"hf:{dataset}", hub_rows(dataset, config, "train"))
