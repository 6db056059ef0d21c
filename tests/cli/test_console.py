"""What `console` prints: tables whose words stay whole."""

from __future__ import annotations

import pytest

from errata.cli import console

HEADS = ("method", "tuning", "stable", "erased", "emergent", "impossible", "flip rate", "decay")
TUNING = "lora@edited+penalty+project"


def test_words_of_a_wide_table_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    cell = "100.0 [34.2,100.0]"
    console.table(HEADS, [["AlphaEdit", TUNING, *[cell] * 6]])
    said = capsys.readouterr().out
    for word in (*" ".join(HEADS).split(), TUNING, "AlphaEdit"):
        assert word in said.split()
    assert said.split().count("[34.2,100.0]") == 6
    assert len({len(line) for line in said.splitlines()}) == 1


def test_a_table_that_fits_by_folding_is_no_wider_than_what_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = "The harbour of Gannet lies in the north, and what lies in the south is not known yet "
    address = "x" * 150
    console.table(("prompt", "answer", "P"), [[2 * prompt, prompt, "0.5"], [address, "two", "1"]])
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {console.PLAIN_WIDTH}
    assert any("harbour of Gannet lies in" in line for line in lines)
    assert "".join(lines).count("x") == 150, "what is longer than a word is folded"


def test_a_small_table_takes_no_more_than_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("figure", "value"), [["decay", "1.0"], ["", "河川"]])
    assert capsys.readouterr().out.splitlines()[1] == " figure   value "
