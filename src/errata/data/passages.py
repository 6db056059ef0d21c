"""Texts for measuring perplexity: plain files, and WikiText split into articles.

WikiText is stored with spaces around punctuation and ` @-@ ` for hyphens. As in lm-eval's task
`wikitext`, the model is given the detokenised text, while words and bytes are counted in the
stored text. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from errata.assets import WORLD_DIR
from errata.core.errors import ErrataError
from errata.data.corpus import read_corpus

WIKITEXT = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")
"""WikiText-2 raw on the Hub, one article per row, and its configuration."""

_TITLE = re.compile(r"^ ?= [^=\n]+ = ?$", re.MULTILINE)
_SPACED = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_SPACED_AFTER = ":;.!?,"
_ENCLOSED = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_LAST = (
    *(("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")),
    *((" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)


class Passage(NamedTuple):
    """One text as the model reads it, with the word and byte counts of its stored form."""

    text: str
    words: int
    bytes: int


def passage(stored: str, *, wikitext: bool = False) -> Passage:
    """Return a text with its word and byte counts.

    Words are counted as in lm-eval, by splitting at white space, so leading or trailing white
    space adds one.
    """
    words = len(re.split(r"\s+", stored))
    read = spaced_as_written(stored) if wikitext else stored
    return Passage(read, words, len(stored.encode()))


def read_passages(name: str, mirror: Path | None = None) -> list[Passage]:
    """Read `wikitext2` (from the Hub or its copy under `mirror`), `demo`, or a text file.

    A file with WikiText's titles is split into articles; a .jsonl file has one passage per line
    (field `text`); any other file is one passage. Raises `ErrataError` for an unreadable or empty
    file.
    """
    if name.replace("-", "").lower() in ("wikitext", "wikitext2", "wikitext2raw"):
        return [passage(page, wikitext=True) for page in _hub_pages(mirror)]
    if name == "demo":
        return [passage(text) for text in read_corpus(str(WORLD_DIR / "heldout.jsonl")).texts]
    try:
        stored = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read {name}: {error}", "give a UTF-8 text file, or `wikitext2`"
        ) from None
    if name.endswith(".jsonl"):
        return [passage(text) for text in read_corpus(name).texts]
    if not stored.strip():
        raise ErrataError(f"{name} contains no text")
    found = articles(stored)
    return [passage(page, wikitext=True) for page in found] if found else [passage(stored)]


def articles(stored: str) -> list[str]:
    """Return the articles of a WikiText file with their titles; an empty list without titles."""
    starts = [match.start() for match in _TITLE.finditer(stored)]
    if not starts:
        return []
    borders = [0, *starts[1:], len(stored)]
    return [stored[start:end] for start, end in pairwise(borders)]


def spaced_as_written(text: str) -> str:
    """Detokenise WikiText with the rules of lm-eval's task `wikitext`, in their order."""
    text = text.replace("s '", "s'")
    for stored, written in _SPACED:
        text = text.replace(stored, written)
    for mark in _SPACED_AFTER:
        text = text.replace(f" {mark} ", f"{mark} ")
    for left, right in _ENCLOSED:
        inside = rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"
        text = re.sub(inside, rf"{left}\1{right}", text)
    for stored, written in _LAST:
        text = text.replace(stored, written)
    return text


def _hub_pages(mirror: Path | None) -> Sequence[str]:
    from errata.data.hub import hub_rows

    dataset, config = WIKITEXT
    return [str(row["page"]) for row in hub_rows(dataset, config, "test", mirror)]
