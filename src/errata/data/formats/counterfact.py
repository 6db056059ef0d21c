"""CounterFact (arXiv 2202.05262) and MultiCounterFact (2210.07229): one nested format.

{"case_id", "requested_rewrite": {"prompt" with one {}, "subject", "target_new": {"str"},
 "target_true": {"str"}}, "paraphrase_prompts", "neighborhood_prompts", …}
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from errata.data.case import Case, Probe
from errata.data.records import Fields, Format, Record, Text
from errata.data.request import EditRequest


class _Target(Fields):
    text: Text = Field(alias="str")


class _Rewrite(Fields):
    prompt: Text
    subject: Text
    target_new: _Target
    target_true: _Target


class _Fact(Fields):
    prompt: Text
    answer: Text


class _Record(Fields):
    case_id: int | str | None = None
    requested_rewrite: _Rewrite
    paraphrase_prompts: Sequence[Text] = ()
    neighborhood_prompts: Sequence[Text] = ()
    attribute_prompts: Sequence[Text] = ()
    generation_prompts: Sequence[Text] = ()
    same_subject: Sequence[_Fact] = ()


def case(record: Record, number: int) -> Case:
    """Convert a CounterFact record to a case; `number` is its id if it has none."""
    read = _Record.model_validate(record)
    rewrite = read.requested_rewrite
    return Case(
        request=EditRequest(
            prompt=rewrite.prompt,
            subject=rewrite.subject,
            target=rewrite.target_new.text,
            id=number if read.case_id is None else read.case_id,
        ),
        target_true=rewrite.target_true.text.strip(),
        paraphrases=tuple(read.paraphrase_prompts),
        neighbours=tuple(read.neighborhood_prompts),
        attribute_prompts=tuple(read.attribute_prompts),
        generation_prompts=tuple(read.generation_prompts),
        same_subject=tuple(
            Probe(prompt=fact.prompt, answer=fact.answer.strip()) for fact in read.same_subject
        ),
    )


COUNTERFACT = Format(
    "counterfact", ("requested_rewrite",), case, (*_Record.model_fields, "pararel_idx")
)
