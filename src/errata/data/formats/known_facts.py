"""Known facts, as ROME collected them for causal tracing (arXiv 2202.05262).

    {"known_id", "subject", "attribute", "template", "prompt", …}

The record's `prompt`, which often continues after its `template`, is used. The target of the case
is the answer that the model is expected to know already.
"""

from __future__ import annotations

from errata.data.case import Case
from errata.data.records import Fields, Format, Record, Text
from errata.data.request import EditRequest
from errata.data.subject import slotted


class _Record(Fields):
    known_id: int | str | None = None
    subject: Text
    attribute: Text
    prompt: Text


def case(record: Record, number: int) -> Case:
    """Convert a known fact to a case; `number` is its id if it has none."""
    read = _Record.model_validate(record)
    return Case(
        request=EditRequest(
            prompt=slotted(read.prompt, read.subject),
            subject=read.subject,
            target=read.attribute,
            id=number if read.known_id is None else read.known_id,
        )
    )


KNOWN = Format("known", ("attribute", "prompt"), case, tuple(_Record.model_fields))
