"""Resuming by parts: work split into pieces, each stored whole when it is done.

    parts = Parts(folder / "parts", json_format(encode, decode))
    parts.one("base", lambda: score(model))                     # one piece
    parts.each({"00000": case, …}, trace)                       # one piece per item
    chunks(parts, cases, 64, lambda start: f"after_{start:06d}", score_many)  # 64 items a piece

A piece that is stored is read back and not computed again, so an interrupted run continues at
the first missing piece. A stored piece that cannot be read is an error, never silently redone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from errata.core.files import parse_json, reading_own, write_text
from errata.core.progress import Progress, no_progress

Item = TypeVar("Item")
Result = TypeVar("Result")
Each = TypeVar("Each")


class Format(NamedTuple, Generic[Result]):
    """How a piece is stored; both functions take the piece's path without its ending."""

    read: Callable[[Path], Result | None]
    """Returns the stored piece, None where there is none; `ErrataError` for a damaged one."""
    write: Callable[[Path, Result], None]
    """Stores a piece, whole or not at all."""


class Parts(NamedTuple, Generic[Result]):
    """A folder of pieces in one format; without a folder nothing is stored or read."""

    folder: Path | None
    format: Format[Result]

    def stored(self, name: str) -> Result | None:
        """Return a stored piece, None where there is none."""
        return None if self.folder is None else self.format.read(self.folder / name)

    def one(self, name: str, work: Callable[[], Result]) -> Result:
        """Return the piece of this name: the stored one, or `work()`, which is then stored."""
        found = self.stored(name)
        if found is None:
            found = work()
            if self.folder is not None:
                self.format.write(self.folder / name, found)
        return found

    def each(
        self,
        items: Mapping[str, Item],
        work: Callable[[Item], Result],
        progress: Progress = no_progress,
    ) -> list[Result]:
        """Return a piece for every item, in order; `items` maps names of pieces to items."""
        found = []
        for done, (name, item) in enumerate(items.items(), start=1):
            found.append(self.one(name, lambda item=item: work(item)))  # type: ignore[misc]
            progress(done, len(items))
        return found


def chunks(
    parts: Parts[list[Each]],
    items: Sequence[Item],
    size: int,
    name: Callable[[int], str],
    work: Callable[[int, Sequence[Item]], list[Each]],
    progress: Progress = no_progress,
) -> list[Each]:
    """Return one result per item, computed and stored `size` items at a time.

    `name` and `work` are given the index of a chunk's first item. Raises `ErrataError` for a
    stored chunk with another number of results than items.
    """
    starts = {name(start): start for start in range(0, len(items), size)}
    assert len(starts) == -(-len(items) // size), "two chunks have one name"
    found: list[Each] = []
    for each, start in starts.items():
        some = items[start : start + size]
        new = parts.one(each, lambda start=start, some=some: work(start, some))  # type: ignore[misc]
        if len(new) != len(some) and parts.folder is not None:
            with reading_own(parts.folder / f"{each}.json"):
                raise ValueError(f"it holds {len(new)} results for {len(some)} items")
        found += new
        progress(start + len(some), len(items))
    return found


def json_format(
    encode: Callable[[Result], Any] = lambda value: value,
    decode: Callable[[Any], Result] = lambda value: value,
) -> Format[Result]:
    """Store pieces as `<name>.json`; `encode` makes plain JSON values and `decode` reads them."""

    def read(path: Path) -> Result | None:
        file = _json(path)
        if not file.exists():
            return None
        with reading_own(file):
            return decode(parse_json(file.read_text(encoding="utf-8")))

    def write(path: Path, value: Result) -> None:
        write_text(_json(path), json.dumps(encode(value), ensure_ascii=False))

    return Format(read, write)


def json_list(encode: Callable[[Each], Any], decode: Callable[[Any], Each]) -> Format[list[Each]]:
    """Store lists of results as `<name>.json`, each result by `encode` and `decode`."""
    return json_format(
        lambda values: [encode(value) for value in values],
        lambda values: [decode(value) for value in values],
    )


def _json(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
