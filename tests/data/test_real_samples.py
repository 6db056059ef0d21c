"""The field's real data: every sample that is a dataset loads, and its oddities are met."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.datasets import DATASETS, load_cases, read_cases
from errata.metrics.prompts import prompts_of

FULL = "counterfact_full.json"
SAMPLES = {
    FULL: 284,
    "counterfact_first5_original_format.json": 5,
    "counterfact_flat.json": 3000,
    "counterfact_locft.json": 1617,
    "zsre_mend_eval.json": 1000,
    "zsre_mend_eval_first5_original_format.json": 5,
    "known_1000.json": 794,
}


def raw(folder: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((folder / name).read_text(encoding="utf-8"))
    return records


@pytest.mark.parametrize(("name", "count"), SAMPLES.items())
def test_every_record_loads(errata_data: Path, name: str, count: int) -> None:
    cases, records = read_cases(str(errata_data / name)), raw(errata_data, name)
    assert len(cases) == len(records) == count
    for case in cases:
        assert case.request.text.count(case.request.subject) >= 1
        start, end = case.request.span
        assert case.request.text[start:end] == case.request.subject
        for prompt in prompts_of(case):
            assert prompt.right is None or prompt.right == prompt.right.strip()


def test_counterfact_keeps_every_prompt_and_id(errata_data: Path) -> None:
    for case, record in zip(full(errata_data), raw(errata_data, FULL), strict=True):
        rewrite = record["requested_rewrite"]
        assert case.id == record["case_id"]
        assert case.request.text == rewrite["prompt"].replace("{}", rewrite["subject"])
        assert case.request.target == rewrite["target_new"]["str"]
        assert case.target_true == rewrite["target_true"]["str"]
        assert len(case.paraphrases) == 2
        assert len(case.neighbours) == len(case.attribute_prompts) == 10
        assert len(case.generation_prompts) == 10


def full(folder: Path) -> list[Case]:
    return read_cases(str(folder / FULL))


def test_counterfact_oddities(errata_data: Path) -> None:
    """Paraphrases with line breaks, prompts drawn again, neighbours that repeat, no target with
    a space; nothing of it is mended on the way."""
    cases = full(errata_data)
    assert any("\n" in text for case in cases for text in case.paraphrases)
    assert all(len(set(case.generation_prompts)) < 10 for case in cases)
    assert any(not case.request.subject.isascii() for case in cases)
    assert any(case.request.span[0] == 0 for case in cases)
    repeated = [case.id for case in cases if max(Counter(case.neighbours).values()) > 1]
    records = {
        record["case_id"]: record["neighborhood_prompts"] for record in raw(errata_data, FULL)
    }
    assert all(len(set(records[number])) < 10 for number in repeated)


def test_flat_counterfact_asks_like_the_full_one(errata_data: Path) -> None:
    whole = {case.id: case for case in full(errata_data)}
    flat = read_cases(str(errata_data / "counterfact_flat.json"))
    both = [(case, whole[case.id]) for case in flat if case.id in whole]
    assert both
    for one, other in both:
        assert one.request == other.request
        assert one.target_true == other.target_true
        assert one.neighbours[0] in other.neighbours
        assert one.paraphrases[0] in (*other.paraphrases, *other.generation_prompts)


def test_zsre_oddities(errata_data: Path) -> None:
    """Trivia gets its question mark; `alt` may begin with a space or be an answer; letters of
    every alphabet stay."""
    path = errata_data / "zsre_mend_eval.json"
    cases, records = read_cases(str(path)), raw(errata_data, path.name)
    form = DATASETS["zsre-alt"].format
    for number, (case, record) in enumerate(zip(cases, records, strict=True)):
        assert case.id == number
        assert case.request.text == record["src"]
        assert case.request.target == record["answers"][0].strip()
        assert case.neighbours == (f"{record['loc']}?",)
        assert case.neighbours[0].startswith("nq question: ")
        assert case.neighbour_answers == (record["loc_ans"].strip(),)
        assert form.case(record, number).request.target == record["alt"].strip()
    assert any(record["alt"].startswith(" ") for record in records)
    assert any(not record["src"].isascii() for record in records)
    assert any(len(record["answers"]) > 1 for record in records)


def test_known_facts_go_on_behind_their_template(errata_data: Path) -> None:
    cases, records = (
        read_cases(str(errata_data / "known_1000.json")),
        raw(errata_data, "known_1000.json"),
    )
    longer = 0
    for case, record in zip(cases, records, strict=True):
        assert case.request.text == record["prompt"].rstrip()
        assert case.request.target == record["attribute"]
        longer += case.request.prompt != record["template"].rstrip()
    assert longer > 100


def test_what_is_no_dataset_says_so(errata_data: Path) -> None:
    with pytest.raises(ErrataError, match="not valid"):
        load_cases(str(errata_data / "counterfact_template_relations.json"), skip_invalid=True)


def test_the_demo_comes_in_the_same_formats() -> None:
    cases, questions, known = (read_cases(name) for name in ("demo", "demo-zsre", "demo-known"))
    assert len(cases) >= 100
    for case in cases:
        assert case.target_true is not None
        assert case.paraphrases
        assert case.neighbours
        assert case.generation_prompts
    assert all(case.neighbour_answers for case in questions)
    assert all(case.request.subject in case.request.text for case in known)
    edited = {case.request.subject for case in cases}
    asked = [text for case in cases for text in case.neighbours]
    assert not [text for text in asked if any(subject in text for subject in edited)]
    dev = {case.request.subject for case in read_cases("demo-dev")}
    assert not dev & edited
