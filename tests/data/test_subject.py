"""The subject is found as a whole word in one place, or the prompt is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import ErrataError
from errata.data.datasets import read_cases
from errata.data.request import EditRequest, check_batch
from errata.data.request_files import read_requests

GATES = "Near Blythe Gateway, Blythe Gate stands in"
NO_BREAK = "Blythe\u00a0Gate stands in"
FOUND: tuple[tuple[str, str, str], ...] = (
    (GATES, "Blythe Gate", "Near Blythe Gateway, {} stands in"),
    ("Pell's port is Pell", "Pell's port", "{} is Pell"),
    ("The (Old) Mill is in", "(Old) Mill", "The {} is in"),
    ("C++ was made by", "C++", "{} was made by"),
    ("A. B. Marrow's son is", "A. B. Marrow", "{}'s son is"),
    ("東京タワーは", "東京タワー", "{}は"),
    ("我知道长城位于", "长城", "我知道{}位于"),
    ("에펠탑은", "에펠탑", "{}은"),
    ("The {Pell} of Pell is", "Pell", "The {} of Pell is"),
    ("The {} of Pell is", "Pell", "The {} of Pell is"),
    ("The { Pell } is", "Pell", "The {} is"),
)


@pytest.mark.parametrize(("text", "subject", "prompt"), FOUND)
def test_the_subject_is_found_as_a_whole_word(text: str, subject: str, prompt: str) -> None:
    assert EditRequest.parse(text, "Rome", subject=subject).prompt == prompt


REFUSED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Near Blythe Gate, Blythe Gate stands in",
        "Blythe Gate",
        (
            "occurs 2 times",
            "'Near {Blythe Gate}, Blythe Gate stands…'",
            "Gate, {Blythe Gate} stands in'",
        ),
    ),
    ("Near Blythe Gateway is", "Blythe Gate", ("only within a word, 'Blythe Gateway'",)),
    ("The cafe\u0301 is in", "cafe", ("only within a word",)),
    ("Pariisissa on", "Pariisi", ("only within a word, 'Pariisissa'",)),
    ("The {Pell} of Marrow is", "Marrow", ("braces mark 'Pell'", "the subject is 'Marrow'")),
    ("The blythe gate is", "Blythe Gate", ("nearest is 'blythe gate'", "differs in case")),
    (NO_BREAK, "Blythe Gate", ("nearest is 'Blythe\\xa0Gate'", "no-break", "--normalise")),
    ("The caf\u00e9 is", "cafe\u0301", ("accents as characters of their own", "--normalise")),
    ("The Bly\u200bthe Gate is", "Blythe Gate", ("zero-width characters", "--normalise")),
    ("Pell\u2019s port is", "Pell's port", ("curly quotes", "--normalise")),
    ("The Eifel Tower is in", "Eiffel Tower", ("the nearest is 'Eifel Tower'",)),
    ("The bridge is in", "Big Ben", ("does not occur",)),
    ("One Pell", "Pell of the North", ("does not occur",)),
)


@pytest.mark.parametrize(("text", "subject", "words"), REFUSED)
def test_a_subject_in_doubt_is_refused_in_every_kind_of_file(
    text: str, subject: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """By hand, in requests and in datasets the same words say what is wrong."""
    with pytest.raises(ErrataError) as by_hand:
        EditRequest.parse(text, "Rome", subject=subject)
    for word in words:
        assert word in str(by_hand.value)
    records: dict[str, dict[str, Any]] = {
        "plain": {"prompt": text, "subject": subject, "target": "Rome"},
        "flat": {"prompt": text, "subject": subject, "target_new": "a", "ground_truth": "b"},
        "known": {"prompt": text, "subject": subject, "attribute": "a"},
        "zsre": {
            "src": text,
            "subject": subject,
            "rephrase": "x",
            "answers": ["a"],
            "loc": "x",
            "loc_ans": "y",
        },
    }
    for name, record in records.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([record]))
        for read in (read_requests, read_cases) if name == "plain" else (read_cases,):
            with pytest.raises(ErrataError) as raised:
                read(str(path))
            assert by_hand.value.message in raised.value.message
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "subject", "target"], [text, subject, "Rome"]])
    with pytest.raises(ErrataError) as raised:
        read_requests(tmp_path / "table.csv")
    assert by_hand.value.message in raised.value.message


def test_normalised_files_have_one_form(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    record = {"prompt": NO_BREAK, "subject": "Blythe Gate", "target": "Cafe\u0301 \u201cX\u201d"}
    path.write_text(json.dumps([record]))
    (request,) = read_requests(path, normalise=True)
    (case,) = read_cases(str(path), normalise=True)
    assert request == case.request.with_values(id=None)
    assert (request.text, request.target) == ("Blythe Gate stands in", 'Caf\u00e9 "X"')


def test_characters_that_look_like_others_are_told_once() -> None:
    asked = [
        EditRequest(prompt="{}\u00a0is in", subject="Pell", target="a"),
        EditRequest(prompt="{} is\u00a0in", subject="Marrow", target="b"),
        EditRequest(prompt="{} is in", subject="Tarn\u200b Hill", target="c"),
    ]
    told = [line for line in check_batch(asked) if "tokens to the model" in line]
    assert len(told) == 2
    assert told[0].startswith("2 requests (1, 2) with no-break")
    assert told[1].startswith("1 request (3) with zero-width characters")
    assert not check_batch([asked[0].with_values(prompt="{} is in")])


@pytest.mark.parametrize("text", ["می‌رود {} در", "👩‍🚀 {} is in", "{}\u3000は"])
def test_joiners_and_spaces_of_a_script_are_no_oddities(text: str) -> None:
    assert not check_batch([EditRequest(prompt=text, subject="Pell", target="a")])
