"""errata's own format: a request with any further fields of a `Case`.

    {"prompt", "subject", "target", "target_true", "paraphrases", "neighbours", …}

The request may also be an object in the field `request`.
"""

from __future__ import annotations

from errata.data.case import Case
from errata.data.records import Format, Record
from errata.data.request_files import FIELDS, request_from


def case(record: Record, number: int) -> Case:
    """Convert a record to a case; `number` is its id if it has none."""
    request = request_from(record.get("request", record))
    if request.id is None:
        request = request.with_values(id=number)
    others = {key: record[key] for key in Case.model_fields if key in record and key != "request"}
    return Case.model_validate({**others, "request": request})


PLAIN = Format("requests", (), case, (*FIELDS, *Case.model_fields))
