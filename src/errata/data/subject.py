"""Where the subject stands in a prompt: one function for command lines, files and datasets.

The subject is found as a whole word. Where that leaves a doubt, the prompt is refused rather than
edited at the wrong place; braces around the subject, or the slot `{}` in its place, settle it.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher

from errata.core.errors import ErrataError
from errata.data.unicode_forms import differences, folded

SLOT = "{}"
AROUND = 20
"""Characters shown on either side of a place in a prompt."""
ALIKE = 0.75
"""Smallest similarity (`difflib`) of words that are suggested as the subject."""
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese, and Korean, whose particles follow a word directly:
characters of scripts in which a word need not end at a space."""
UNSPACED_END = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff]"
)
"""The same without Korean, which has spaces between words, and with punctuation."""
OPENING = ("Ps", "Pi", "Sc")
"""Unicode categories of opening brackets, opening quotation marks and currency signs."""
MARK = 'mark it with braces: "The {Eiffel Tower} is in the city of"'


def prompt_and_subject(text: str, subject: str | None) -> tuple[str, str]:
    """Return the prompt with a slot, and the subject, marked in the text or given separately.

    Raises `ErrataError` unless the subject is marked once, or stands in the text once as a whole
    word, and if braces mark another one.
    """
    if subject is None:
        if SLOT in text:
            raise ErrataError(
                f"{text!r} has a slot but no subject",
                "write the subject between the braces, or give it separately (--subject)",
            )
        return _marked(text)
    if SLOT in text:
        return text, subject
    if "{" + subject + "}" in text:
        return text.replace("{" + subject + "}", SLOT, 1), subject
    pair = re.search(r"\{([^{}]*)\}", text)
    if pair is not None and subject.strip() != pair[1].strip():
        raise ErrataError(
            f"braces mark {pair[1]!r} in {text!r}, but the subject is {subject!r}",
            f"mark the subject, or write {SLOT} in its place",
        )
    if pair is not None:
        return text[: pair.start()] + SLOT + text[pair.end() :], subject
    start = _place(text, subject)
    return text[:start] + SLOT + text[start + len(subject) :], subject


def slotted(text: str, subject: str) -> str:
    """Return a prompt with a slot in place of the subject; see `prompt_and_subject`."""
    return prompt_and_subject(text, subject)[0]


def separator_after(prompt: str, subject: str) -> str:
    """Return the text between a prompt and its answer: a space, or nothing where none follows.

    That is after white space but a single space, after an opening bracket or quotation mark or a
    currency sign, and in scripts without spaces.
    """
    text = prompt.replace(SLOT, subject.strip())
    end, tail = text[-1:], text[len(text.rstrip()) :]
    opening = end != "" and unicodedata.category(end) in OPENING
    return "" if tail.strip(" ") or len(tail) > 1 or opening or UNSPACED_END.match(end) else " "


def _marked(text: str) -> tuple[str, str]:
    """Return the prompt with a slot, and the subject that braces mark."""
    start, end = text.find("{"), text.rfind("}")
    inner = text[start + 1 : end]
    if start < 0 or end < start or "{" in inner or "}" in inner:
        raise ErrataError(
            f"the subject is not marked in {text!r}",
            'put the subject in one pair of braces: "The {Eiffel Tower} is in the city of"',
            f"or write {SLOT} in its place and give the subject separately",
        )
    return text[:start] + SLOT + text[end + 1 :], inner


def _place(text: str, subject: str) -> int:
    """Return the one place where the subject stands as a whole word."""
    found = [match.start() for match in re.finditer(f"(?={re.escape(subject)})", text)]
    if not subject.strip() or not found:
        raise _absent(text, subject)
    whole = [start for start in found if _is_whole(text, start, start + len(subject))]
    if not whole:
        word = re.search(r"\w*$", text[: found[0]])
        rest = re.match(r"[\w\u0300-\u036f]*", text[found[0] + len(subject) :])
        assert word is not None
        assert rest is not None
        raise ErrataError(
            f"the subject {subject!r} occurs in {text!r} only within a word, "
            f"{word[0] + subject + rest[0]!r}",
            f"give the whole word as the subject, or {MARK}",
        )
    if len(whole) > 1:
        places = ", ".join(repr(_around(text, start, subject)) for start in whole)
        raise ErrataError(
            f"the subject {subject!r} occurs {len(whole)} times in {text!r}: {places}", MARK
        )
    return whole[0]


def _around(text: str, start: int, subject: str) -> str:
    """Return the text around a place, with the subject in braces."""
    end = start + len(subject)
    before, after = text[max(0, start - AROUND) : start], text[end : end + AROUND]
    left, right = "…" if start > AROUND else "", "…" if end + AROUND < len(text) else ""
    return f"{left}{before}{{{subject}}}{after}{right}"


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a range of a text neither begins nor ends within a word."""
    return not (_joined(text, start) or _joined(text, end))


def _joined(text: str, place: int) -> bool:
    """Whether the characters before and after a place belong to one word."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after).startswith("M"):  # an accent or vowel sign of the character
        return True
    if UNSPACED.match(before) or UNSPACED.match(after):
        return False
    return _in_word(before) and _in_word(after)


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def _absent(text: str, subject: str) -> ErrataError:
    """Return an error with what the text contains instead of the subject."""
    said = f"the subject {subject!r} does not occur in {text!r}"
    nearest = _nearest(text, subject) if subject.strip() else None
    if nearest is None:
        return ErrataError(
            said,
            f"write {SLOT} in its place, or mark it with braces and omit the separate subject",
        )
    ways = differences(nearest, subject)
    apart = f", which differs in {' and '.join(ways)}" if ways else ""
    hints = ["write it as in the prompt, or correct the prompt"]
    if ways and "case" not in ways:
        hints.append("--normalise (normalise=True) gives both the same form")
    return ErrataError(f"{said}; the nearest is {nearest!r}{apart}", *hints)


def _nearest(text: str, subject: str) -> str | None:
    """Return what a text contains that differs from the subject in form or by a few letters."""
    plain, places = folded(text)
    wanted, _ = folded(subject)
    if wanted and (start := plain.find(wanted)) >= 0:
        return text[places[start] : places[start + len(wanted) - 1] + 1]
    words = list(re.finditer(r"\S+", text))
    count = len(subject.split())
    spans = [
        text[words[i].start() : words[i + count - 1].end()].strip(".,:;!?\"'")
        for i in range(len(words) - count + 1)
    ]
    alike = [(SequenceMatcher(None, each, subject).ratio(), each) for each in spans]
    best = max(alike, default=(0.0, ""))
    return best[1] if best[0] >= ALIKE else None
