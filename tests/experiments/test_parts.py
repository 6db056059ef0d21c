"""Work by parts: a killed run continues at the first missing part and ends as if uninterrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.core.errors import ErrataError
from errata.experiments.parts import Parts, chunks, json_format, json_list

ITEMS = list(range(10))


class Killed(BaseException):
    """Stands for the end of a process."""


class Squares:
    """Squares numbers, dies before some number, and records what it was asked."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.asked = dies_at, list[int]()

    def many(self, start: int, some: Sequence[int]) -> list[int]:
        assert start == some[0]
        return [self.one(number) for number in some]

    def one(self, number: int) -> int:
        if number == self.dies_at:
            raise Killed
        self.asked.append(number)
        return number * number


def squared(
    folder: Path | None, work: Squares, seen: list[tuple[int, int]] | None = None
) -> list[int]:
    return chunks(
        Parts(folder, json_list(lambda x: [x], lambda kept: int(kept[0]))),
        ITEMS,
        4,
        lambda start: f"part_{start:06d}",
        work.many,
        lambda done, total: None if seen is None else seen.append((done, total)),
    )


def test_killed_in_the_middle_it_continues_at_the_first_missing_part(tmp_path: Path) -> None:
    first, second = Squares(dies_at=5), Squares()
    with pytest.raises(Killed):
        squared(tmp_path, first)
    assert [path.name for path in tmp_path.iterdir()] == ["part_000000.json"]  # nothing half-made
    assert squared(tmp_path, second) == [x * x for x in ITEMS] == squared(None, Squares())
    assert second.asked == ITEMS[4:]


def test_results_keep_their_order_and_progress_counts_items(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (tmp_path / "part_000004.json").write_text("[[-1], [-2], [-3], [-4]]")
    assert squared(tmp_path, Squares(), seen) == [0, 1, 4, 9, -1, -2, -3, -4, 64, 81]
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("text", ["[[1], [2", "{}", "[[1], [2], [3]]", "[1, 2, 3, 4]", ""])
def test_a_damaged_part_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "part_000000.json"
    path.write_text(text)
    with pytest.raises(ErrataError, match=r"part_000000\.json is damaged") as caught:
        squared(tmp_path, Squares())
    assert "remove it and run the same command again" in caught.value.hints[0]
    path.unlink()
    assert squared(tmp_path, Squares()) == [x * x for x in ITEMS]


def test_without_a_folder_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert squared(None, Squares()) == squared(None, Squares())
    assert not any(tmp_path.iterdir())


def test_single_parts_are_computed_once(tmp_path: Path) -> None:
    parts = Parts[int](tmp_path, json_format())
    seen: list[tuple[int, int]] = []
    work = Squares(dies_at=3)
    named = {f"{x}.5": x for x in (2, 1, 3)}  # a name with a dot keeps it
    with pytest.raises(Killed):
        parts.each(named, work.one, lambda *at: seen.append(at))
    assert (work.asked, seen) == ([2, 1], [(1, 3), (2, 3)])
    assert {path.name for path in tmp_path.iterdir()} == {"2.5.json", "1.5.json"}
    again = Squares()
    assert parts.each(named, again.one) == [4, 1, 9]
    assert again.asked == [3]
    assert parts.stored("3.5") == 9
    assert parts.stored("4.5") is None
