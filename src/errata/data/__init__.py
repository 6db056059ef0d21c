"""Datasets of cases: one file per format, one line per dataset in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from errata.case import Case
from errata.data import counterfact
from errata.demo import WORLD_DIR
from errata.errors import ErrataError

DATASETS: dict[str, Callable[[], list[Case]]] = {
    "demo": lambda: counterfact.read(WORLD_DIR / "cases.jsonl"),
}
"""Datasets that are known by name."""


def read_cases(name_or_path: str, limit: int | None = None, offset: int = 0) -> list[Case]:
    """Return cases of a dataset by name, or of a file in CounterFact's format.

    Raises `ErrataError` for an unknown name, an unreadable file or a broken record.
    """
    if name_or_path in DATASETS:
        cases = DATASETS[name_or_path]()
    elif Path(name_or_path).is_file():
        cases = counterfact.read(Path(name_or_path))
    else:
        raise ErrataError(
            f"there is no dataset or file {name_or_path!r}",
            f"known datasets: {', '.join(DATASETS)}",
            "or give the path of a file in CounterFact's format",
        )
    return cases[offset:][:limit]
