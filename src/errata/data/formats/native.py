"""Cases in our own words: a request, and what is asked afterwards if anything is.

    {"prompt", "subject", "target", "target_true", "paraphrases", "neighbours", …}

The fields beside the request's are those of `Case`; a request may also stand under `request`.
"""

from __future__ import annotations

from errata.data.case import Case
from errata.data.records import Format, Record
from errata.data.request_files import request_from


def case(record: Record, number: int) -> Case:
    """Read a request with any of a case's fields beside it."""
    request = request_from(record.get("request", record))
    if request.id is None:
        request = request.with_values(id=number)
    beside = {key: record[key] for key in Case.model_fields if key in record and key != "request"}
    return Case.model_validate({**beside, "request": request})


PLAIN = Format("requests", (), case)
