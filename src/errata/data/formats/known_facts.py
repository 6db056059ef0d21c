"""Facts that a model knows, as ROME collected them for causal tracing (arXiv 2202.05262).

    {"known_id", "subject", "attribute", "template", "prompt", …}

The prompt is the record's `prompt`, which often goes on behind its `template`. As a case the
"target" is what the model is believed to say already.
"""

from __future__ import annotations

from errata.data.case import Case
from errata.data.records import Fields, Format, Record, Text, slotted
from errata.data.request import EditRequest


class _Record(Fields):
    known_id: int | str | None = None
    subject: Text
    attribute: Text
    prompt: Text


def case(record: Record, number: int) -> Case:
    """Read a known fact."""
    read = _Record.model_validate(record)
    return Case(
        request=EditRequest(
            prompt=slotted(read.prompt, read.subject),
            subject=read.subject,
            target=read.attribute,
            id=number if read.known_id is None else read.known_id,
        )
    )


KNOWN = Format("known", ("attribute", "prompt"), case)
