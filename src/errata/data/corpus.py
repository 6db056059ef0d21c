"""Text to measure statistics on: the demo's own, files, or a Hugging Face dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.assets import WORLD_DIR
from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason
from errata.data.hub import hub_rows


@dataclass(frozen=True)
class Corpus:
    """Text to measure statistics on."""

    name: str
    texts: Sequence[str]

    @property
    def digest(self) -> str:
        """Hash of the text."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]


def read_corpus(name: str) -> Corpus:
    """Read a corpus: `demo`, a .txt file (a text a line), a .jsonl file (`text`), hf:NAME:CONFIG.

    Raises `ErrataError` for one that cannot be read or holds no text.
    """
    if name == "demo":
        texts = _file_texts(WORLD_DIR / "text.jsonl")
    elif name.startswith("hf:"):
        texts = _hub_texts(*name.removeprefix("hf:").split(":")[:2])
    else:
        texts = _file_texts(Path(name))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ErrataError(
            f"the corpus {name} holds no text", "give a .txt file with a text per line, or a .jsonl"
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
            "give a .txt file with a text per line, a .jsonl file with `text` in every record, "
            "or hf:DATASET:CONFIG",
        ) from None
    return lines


def _text_of(record: Any) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise TypeError(f"a record has no `text` that is text: {record!r:.60}")
    return text


def _hub_texts(dataset: str, config: str | None = None) -> list[str]:
    rows = hub_rows(dataset, config, "train")
    try:
        return [_text_of(row) for row in rows]
    except TypeError as error:
        raise ErrataError(
            f"cannot read the corpus hf:{dataset}: {error}",
            "name a dataset whose records have a `text`",
        ) from None
