"""CounterFact as EasyEdit (arXiv 2308.07269) flattens it: one paraphrase, one neighbour.

    {"case_id", "prompt" with the subject in it, "subject", "target_new", "ground_truth",
     "rephrase_prompt", "locality_prompt", "locality_ground_truth"}

In the published files most rephrasings are CounterFact's generation prompts, so paraphrase scores
are not comparable with CounterFact's own.
"""

from __future__ import annotations

from errata.data.case import Case
from errata.data.records import Fields, Format, Record, Text
from errata.data.request import EditRequest
from errata.data.subject import slotted


class _Record(Fields):
    case_id: int | str | None = None
    prompt: Text
    subject: Text
    target_new: Text
    ground_truth: Text
    rephrase_prompt: Text | None = None
    locality_prompt: Text | None = None
    locality_ground_truth: Text | None = None


def case(record: Record, number: int) -> Case:
    """Convert a flat record to a case; `number` is its id if it has none."""
    read = _Record.model_validate(record)
    answer = (read.locality_ground_truth or read.ground_truth).strip()
    return Case(
        request=EditRequest(
            prompt=slotted(read.prompt, read.subject),
            subject=read.subject,
            target=read.target_new,
            id=number if read.case_id is None else read.case_id,
        ),
        target_true=read.ground_truth.strip(),
        paraphrases=() if read.rephrase_prompt is None else (read.rephrase_prompt,),
        neighbours=(read.locality_prompt,) if read.locality_prompt is not None else (),
        neighbour_answers=(answer,) if read.locality_prompt is not None else (),
    )


FLAT = Format("flat", ("prompt", "target_new", "ground_truth"), case, tuple(_Record.model_fields))
