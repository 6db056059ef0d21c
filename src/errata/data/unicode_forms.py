"""Characters that look alike and are other tokens to a model: spaces, quotes, accents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

QUOTES = str.maketrans("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "''''\"\"\"\"")
FORMS = {
    "no-break or other special spaces": re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]"),
    "zero-width characters": re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]"),
    "curly quotes": re.compile("[\u2018-\u201f]"),
}
"""Kinds of characters that `normalised` replaces, besides decomposed ones."""
SPACES, ZERO_WIDTH, CURLY = FORMS
DECOMPOSED = "accents as characters of their own"


def normalised(text: str) -> str:
    """Return a text in Unicode's NFC, with plain spaces and quotes, none of them invisible."""
    text = FORMS[SPACES].sub(" ", FORMS[ZERO_WIDTH].sub("", text))
    return unicodedata.normalize("NFC", text.translate(QUOTES))


def normalised_record(value: Any) -> Any:
    """Return a record with all its texts normalised."""
    if isinstance(value, str):
        return normalised(value)
    if isinstance(value, dict):
        return {key: normalised_record(each) for key, each in value.items()}
    return [normalised_record(each) for each in value] if isinstance(value, list) else value


def oddities(text: str) -> Iterator[str]:
    """Yield the kinds of characters in a text that `normalised` replaces."""
    for name, pattern in FORMS.items():
        if pattern.search(text):
            yield name
    if unicodedata.normalize("NFC", text) != text:
        yield DECOMPOSED


def folded(text: str) -> tuple[str, list[int]]:
    """Return a text without differences of form and case, and each character's place in `text`."""
    letters, places = [], []
    for place, character in enumerate(text):
        character = normalised(character)
        for each in unicodedata.normalize("NFKD", character).casefold():
            if not unicodedata.combining(each):
                letters.append(each)
                places.append(place)
    return "".join(letters), places


def differences(one: str, other: str) -> list[str]:
    """Return in which ways two texts differ that are the same when folded."""
    if folded(one)[0] != folded(other)[0]:
        return []
    found = [
        name
        for name in (*FORMS, DECOMPOSED)
        if (name in oddities(one)) != (name in oddities(other))
    ]
    one, other = normalised(one), normalised(other)
    if one != other:
        found.append("case" if one.casefold() == other.casefold() else "accents")
    return found
