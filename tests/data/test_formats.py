"""Every format of the field becomes the same kind of case, and every broken record is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import ErrataError
from errata.data.datasets import DATASETS, FORMATS, load_cases, read_cases

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 70,
    "requested_rewrite": {
        "prompt": "The harbour of {} lies in",
        "relation_id": "R1",
        "target_new": {"str": " Tarn", "id": "T1"},
        "target_true": {"str": "Quenby ", "id": "T2"},
        "subject": "Velmora",
    },
    "paraphrase_prompts": ["Boats leave. Velmora is in", "One sees Velmora in"],
    "neighborhood_prompts": ["The harbour of Gannet lies in"] * 3,
    "attribute_prompts": ["Hesk lies in"],
    "generation_prompts": ["Velmora is known for"],
    "same_subject": [{"prompt": "Velmora belongs to", "answer": "Marrow"}],
}
ZSRE = {
    "subject": "Ilmar Tuul",
    "src": "What does Ilmar Tuul teach?",
    "pred": "chess",
    "rephrase": "Which subject is taught by Ilmar Tuul?",
    "alt": " music",
    "answers": ["botany", "plants"],
    "loc": "nq question: who built the lantern bridge",
    "loc_ans": "Holm and Sons",
    "cond": "chess >> music || What does Ilmar Tuul teach?",
}
FLAT = {
    "case_id": 3,
    "prompt": "Orsolya Brandt speaks",
    "subject": "Orsolya Brandt",
    "target_new": "Marrovian",
    "ground_truth": "Tarnish",
    "rephrase_prompt": "The mother of Orsolya Brandt taught her",
    "locality_prompt": "Émile Łodz speaks",
    "locality_ground_truth": "Tarnish",
}
KNOWN = {
    "known_id": 5,
    "subject": "Pell",
    "attribute": "Marrow",
    "template": "{} is the capital",
    "prediction": " Marrow, of course",
    "prompt": "Pell is the capital of the country of",
}
PLAIN = {"prompt": "The {} is in", "subject": "Lantern Bridge", "target": "Pell", "id": "b"}


def write(folder: Path, *records: Any, lines: bool = False) -> str:
    path = folder / ("records.jsonl" if lines else "records.json")
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(list(records))
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("lines", [True, False])
def test_counterfact(tmp_path: Path, lines: bool) -> None:
    (case,) = read_cases(write(tmp_path, COUNTERFACT, lines=lines))
    assert case.id == 7
    assert case.request.text == "The harbour of Velmora lies in"
    assert (case.request.target, case.target_true) == ("Tarn", "Quenby")
    assert list(case.paraphrases) == COUNTERFACT["paraphrase_prompts"]
    assert len(case.neighbours) == 3
    assert case.neighbour_answers == ()
    assert case.generation_prompts == ("Velmora is known for",)
    assert [(fact.prompt, fact.answer) for fact in case.same_subject] == [
        ("Velmora belongs to", "Marrow")
    ]


def test_zsre_teaches_the_first_answer_and_asks_trivia(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path, ZSRE))
    assert case.id == 0
    assert case.request.prompt == "What does {} teach?"
    assert case.request.target == "botany"
    assert case.target_true is None
    assert case.paraphrases == (ZSRE["rephrase"],)
    assert case.neighbours == ("nq question: who built the lantern bridge?",)
    assert case.neighbour_answers == ("Holm and Sons",)


def test_zsre_alt_teaches_the_wrong_answer(tmp_path: Path) -> None:
    form = DATASETS["zsre-alt"].format
    assert form.case(ZSRE, 0).request.target == "music"
    with pytest.raises(ErrataError, match="alt"):
        form.case({**ZSRE, "alt": " "}, 0)
    assert read_cases(write(tmp_path, {**ZSRE, "alt": ""}))[0].request.target == "botany"


def test_flat_counterfact_gets_its_slot_back(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path, FLAT))
    assert case.request.prompt == "{} speaks"
    assert case.paraphrases == (FLAT["rephrase_prompt"],)
    assert (case.neighbours, case.neighbour_answers) == (("Émile Łodz speaks",), ("Tarnish",))
    (case,) = read_cases(write(tmp_path, {k: v for k, v in FLAT.items() if "l" not in k[:1]}))
    assert case.neighbours == case.neighbour_answers == ()


def test_known_facts_are_asked_by_their_prompt(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path, KNOWN))
    assert case.request.prompt == "{} is the capital of the country of"
    assert (case.id, case.request.target, case.target_true) == (5, "Marrow", None)


def test_requests_may_carry_what_is_asked_afterwards(tmp_path: Path) -> None:
    rich = {"prompt": "The {Lantern Bridge} is in", "target": "Pell", "target_true": "Hesk"}
    plain, marked = read_cases(write(tmp_path, PLAIN, {**rich, "paraphrases": ["It is in"]}))
    assert plain.id == "b"
    assert marked.id == 1
    assert marked.request.subject == "Lantern Bridge"
    assert (marked.target_true, marked.paraphrases) == ("Hesk", ("It is in",))


def test_a_subject_is_a_whole_word(tmp_path: Path) -> None:
    record = {**FLAT, "subject": "Art", "prompt": "Artists who met Art say it is"}
    (case,) = read_cases(write(tmp_path, record))
    assert case.request.prompt == "Artists who met {} say it is"


def test_a_case_as_runs_keep_it_is_read_back(tmp_path: Path) -> None:
    for record in (COUNTERFACT, ZSRE, FLAT, KNOWN, PLAIN):
        (case,) = read_cases(write(tmp_path, record))
        kept = case.model_dump(mode="json", exclude_defaults=True)
        assert read_cases(write(tmp_path, kept)) == [case]


BROKEN: tuple[tuple[dict[str, Any], tuple[str, ...], Any, str], ...] = (
    (COUNTERFACT, ("requested_rewrite", "subject"), None, "requested_rewrite.subject"),
    (COUNTERFACT, ("requested_rewrite", "target_new"), {}, "requested_rewrite.target_new.str"),
    (COUNTERFACT, ("requested_rewrite", "target_true"), {"str": " "}, "target_true.str: is empty"),
    (COUNTERFACT, ("requested_rewrite", "prompt"), "no slot", "prompt: needs exactly one slot"),
    (COUNTERFACT, ("requested_rewrite", "prompt"), "{} or {}", "prompt: needs exactly one slot"),
    (COUNTERFACT, ("neighborhood_prompts",), "one text", "neighborhood_prompts"),
    (COUNTERFACT, ("paraphrase_prompts",), ["fine", 3], "paraphrase_prompts.1"),
    (ZSRE, ("answers",), [], "answers: is empty"),
    (ZSRE, ("loc_ans",), None, "loc_ans"),
    (ZSRE, ("subject",), "Somebody", "the subject 'Somebody' does not occur in"),
    (FLAT, ("ground_truth",), "", "ground_truth: is empty"),
    (FLAT, ("subject",), "Nobody", "the subject 'Nobody' does not occur in"),
    (KNOWN, ("attribute",), 4, "attribute"),
    (PLAIN, ("target",), "", "target: is empty"),
)


def broken(record: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a record with one value replaced, or taken out for None."""
    copy = json.loads(json.dumps(record))
    place = copy
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return dict(copy)


@pytest.mark.parametrize(("record", "path", "value", "words"), BROKEN)
def test_a_broken_record_is_named_by_number_and_field(
    tmp_path: Path, record: dict[str, Any], path: tuple[str, ...], value: Any, words: str
) -> None:
    file = write(tmp_path, record, broken(record, path, value), record)
    with pytest.raises(ErrataError) as raised:
        read_cases(file)
    assert "1 of 3 records" in raised.value.message
    assert "record 2" in raised.value.message
    assert words in raised.value.message
    loaded = load_cases(file, skip_invalid=True)
    assert len(loaded.cases) == 2
    assert len(loaded.skipped) == 1
    assert words in loaded.skipped[0]


@pytest.mark.parametrize(
    ("record", "gone"),
    [
        (COUNTERFACT, "requested_rewrite"),
        (ZSRE, "rephrase"),
        (KNOWN, "attribute"),
        (FLAT, "ground_truth"),
    ],
)
def test_a_broken_first_record_does_not_decide_how_the_others_are_read(
    tmp_path: Path, record: dict[str, Any], gone: str
) -> None:
    whole = read_cases(write(tmp_path, record, record))
    file = write(tmp_path, broken(record, (gone,), None), record)
    with pytest.raises(ErrataError, match=f"(?s)1 of 2 .*record 1:.*{gone}: Field required"):
        read_cases(file)
    loaded = load_cases(file, skip_invalid=True)
    assert [case.model_dump(exclude={"request": {"id"}}) for case in loaded.cases] == [
        case.model_dump(exclude={"request": {"id"}}) for case in whole[1:]
    ]
    assert len(loaded.skipped) == 1


def test_the_kind_of_few_whole_records_among_broken_ones_is_told(tmp_path: Path) -> None:
    empty = broken(COUNTERFACT, ("requested_rewrite",), None)
    loaded = load_cases(write(tmp_path, *[empty] * 5, COUNTERFACT), skip_invalid=True)
    assert [len(case.paraphrases) for case in loaded.cases] == [2]
    assert len(loaded.skipped) == 5


def test_requests_stay_requests_beside_a_record_of_another_kind(tmp_path: Path) -> None:
    plain = [{**PLAIN, "paraphrases": ["It is in"]}] * 2
    cases = read_cases(write(tmp_path, COUNTERFACT, *plain))
    assert [case.paraphrases for case in cases[1:]] == [("It is in",)] * 2


def test_records_that_are_no_objects_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{json.dumps(KNOWN)}\n[1]\n{{torn\n\n", encoding="utf-8")
    with pytest.raises(ErrataError, match=r"(?s)2 of 3.*record 2.*record 3: is not JSON"):
        read_cases(str(path))
    assert len(load_cases(str(path), skip_invalid=True).cases) == 1


def test_skipping_does_not_hide_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="2 of 2 records"):
        load_cases(write(tmp_path, {"a": 1}, {"b": 2}), skip_invalid=True)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '["a"]'])
def test_files_without_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ErrataError, match=r"not JSON|no records"):
        read_cases(str(path))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ErrataError) as raised:
        read_cases("conterfact")
    assert "counterfact" in raised.value.hints[0]


def test_limit_offset_and_seed_cut_one_order(tmp_path: Path) -> None:
    file = write(tmp_path, *({**KNOWN, "known_id": i} for i in range(20)))

    def ids(**cut: Any) -> list[Any]:
        return [case.id for case in read_cases(file, **cut)]

    assert ids() == list(range(20))
    assert ids(limit=3, offset=5) == [5, 6, 7]
    shuffled = ids(seed=1)
    assert shuffled != list(range(20))
    assert sorted(shuffled) == list(range(20))
    assert ids(seed=1, limit=4) + ids(seed=1, offset=4) == shuffled
    assert ids(seed=2) != shuffled
    with pytest.raises(ErrataError, match="20 cases"):
        ids(offset=20)


def test_every_format_is_told_by_its_fields() -> None:
    found = [
        next(form.name for form in FORMATS if all(name in record for name in form.fields))
        for record in (COUNTERFACT, ZSRE, KNOWN, FLAT, PLAIN)
    ]
    assert found == ["counterfact", "zsre", "known", "flat", "requests"]


def test_references_come_by_relation_and_target(tmp_path: Path) -> None:
    snippets = tmp_path / "snippets.json"
    samples = [{"name": "Velmora", "text": "about it"}, {"name": "Hesk", "text": "about Hesk"}]
    group = {"relation_id": "R1", "target_id": "T1", "samples": samples}
    snippets.write_text(json.dumps([group, {**group, "target_id": "T2"}]), encoding="utf-8")
    (case,) = load_cases(write(tmp_path, COUNTERFACT), references=snippets).cases
    assert case.references == ("about it", "about Hesk")
    assert case.essence == ("about it",)
    snippets.write_text('[{"relation_id": "R1"}]', encoding="utf-8")
    with pytest.raises(ErrataError, match=r"(?s)record 1.*target_id"):
        load_cases(write(tmp_path, COUNTERFACT), references=snippets)
