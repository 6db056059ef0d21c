"""zsRE as MEND prepared it (arXiv 2110.11309): questions, and trivia that must not change.

    {"subject", "src", "rephrase", "answers", "alt", "loc", "loc_ans", …}

The target is the first of `answers`, as in ROME and MEMIT; `zsre-alt` takes `alt`, a wrong
answer, as EasyEdit does. A missing question mark is added to trivia questions.
"""

from __future__ import annotations

from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.records import Fields, Format, Record, Text
from errata.data.request import EditRequest
from errata.data.subject import slotted


class _Record(Fields):
    subject: Text
    src: Text
    rephrase: Text
    answers: list[Text]
    alt: str | None = None
    loc: Text
    loc_ans: Text


def _case(record: Record, number: int, alternative: bool) -> Case:
    read = _Record.model_validate(record)
    target = read.alt if alternative else next(iter(read.answers), None)
    if target is None or not target.strip():
        raise ErrataError(f"{'alt' if alternative else 'answers'}: is empty")
    trivia = read.loc.rstrip()
    return Case(
        request=EditRequest(
            prompt=slotted(read.src, read.subject),
            subject=read.subject,
            target=target,
            id=number,
        ),
        paraphrases=(read.rephrase,),
        neighbours=(trivia if trivia.endswith("?") else f"{trivia}?",),
        neighbour_answers=(read.loc_ans.strip(),),
    )


def case(record: Record, number: int) -> Case:
    """Convert a record to a case whose target is the first of `answers`."""
    return _case(record, number, alternative=False)


def alternative_case(record: Record, number: int) -> Case:
    """Convert a record to a case whose target is `alt`."""
    return _case(record, number, alternative=True)


ZSRE = Format("zsre", ("src", "rephrase"), case, tuple(_Record.model_fields))
ZSRE_ALT = Format("zsre-alt", ("src", "rephrase"), alternative_case, tuple(_Record.model_fields))
