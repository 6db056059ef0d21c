"""Requests: the brace syntax, files of every shape, and all that can be wrong with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.request import EditRequest, check_batch
from errata.data.request_files import load_requests, read_requests, request_from
from errata.experiments.edit_plan import EditPlan, check_batches

TOWER = EditRequest(prompt="The {} is in the city of", subject="Eiffel Tower", target="Rome")


def request(
    subject: str = "Eiffel Tower", target: str = "Rome", prompt: str = "{} is in"
) -> EditRequest:
    return EditRequest(prompt=prompt, subject=subject, target=target)


def test_braces_mark_the_subject() -> None:
    assert EditRequest.parse("The {Eiffel Tower} is in the city of", "Rome") == TOWER


def test_a_slot_with_the_subject_beside_is_the_same() -> None:
    parsed = EditRequest.parse("The {} is in the city of", "Rome", subject="Eiffel Tower")
    assert parsed == TOWER


def test_text_span_answer_and_marked() -> None:
    assert TOWER.text == "The Eiffel Tower is in the city of"
    start, end = TOWER.span
    assert TOWER.text[start:end] == "Eiffel Tower"
    assert TOWER.answer == " Rome"
    assert TOWER.marked == "The {Eiffel Tower} is in the city of"
    assert TOWER.with_values(separator="").answer == "Rome"


@given(
    before=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"])),
    subject=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1),
    after=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"])),
)
def test_parse_and_marked_are_each_other_undone(before: str, subject: str, after: str) -> None:
    if not subject.strip():
        return
    parsed = EditRequest.parse(f"{before}{{{subject}}}{after}", "Rome")
    start, end = parsed.span
    assert parsed.text[start:end] == subject.strip()
    assert EditRequest.parse(parsed.marked, "Rome", separator=parsed.separator) == parsed
    written = f"{before}{subject.strip()}{after}"
    assert parsed.text + parsed.answer in (f"{written}Rome", f"{written} Rome")


@pytest.mark.parametrize("subject", ["a{b}c", "{0}", "{", "}{", "set() {x}", "a {} b"])
@pytest.mark.parametrize("target", ["Rome", "{x}", "{}", "{"])
def test_braces_in_subject_and_target_are_letters_like_others(subject: str, target: str) -> None:
    odd = EditRequest(prompt="The {} is", subject=subject, target=target)
    assert odd.text == f"The {subject} is"
    assert odd.text[slice(*odd.span)] == subject
    assert odd.answer == f" {target}"


@pytest.mark.parametrize(
    "text", ["The Eiffel Tower is", "The {Eiffel {Tower} is", "{a} and {b}", "}a{", "{", "{{a}}"]
)
def test_a_subject_that_is_not_marked_once_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ErrataError, match="the subject is not marked") as caught:
        EditRequest.parse(text, "Rome")
    assert "{Eiffel Tower}" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": "no slot"}, r"prompt: needs exactly one slot \{\} .* has 0"),
        ({"prompt": "{} {}"}, r"prompt: .* has 2"),
        ({"subject": "  "}, "subject: is empty"),
        ({"target": "\n"}, "target: is empty"),
        ({"separator": ", "}, "separator: may contain white space only"),
        ({"subject": 7}, r"subject: .*string \(got 7\)"),
        ({"tagret": "Rome"}, "tagret: is not known here"),
    ],
)
def test_every_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ErrataError, match=named):
        EditRequest.of({"prompt": "{} is", "subject": "a", "target": "b", **fields})


def test_white_space_around_the_parts_is_taken_off() -> None:
    loose = EditRequest(prompt="The {} is in ", subject=" Eiffel Tower ", target=" Rome\n")
    assert (loose.text, loose.answer) == ("The Eiffel Tower is in", " Rome")


@pytest.mark.parametrize("end", ["", " ", "  ", "\n", "\n\n", " \n", "\t"])
def test_the_white_space_at_the_end_of_a_prompt_is_kept(end: str) -> None:
    for read in (
        EditRequest(prompt=f"Who? {{}}{end}", subject="Pell", target="Rome"),
        EditRequest.parse(f"Who? {{Pell}}{end}", "Rome"),
        request_from({"prompt": f"Who? {{Pell}}{end}", "target": "Rome"}),
    ):
        assert read.text + read.answer == f"Who? Pell{end or ' '}Rome"
        assert EditRequest.of(read.model_dump()) == read


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("The {Tower} is in", " "),
        ("The {Tower} (in", " "),
        ("The {Tower} (", ""),
        ("The {Tower} is called \u201c", ""),
        ("The {Tower} costs \u20ac", ""),
        ("{東京タワー}は", ""),
        ("{長城}位于：", ""),
        ("{长城}", ""),
        ("{에펠탑}은", " "),
        ("{Tower}", " "),
        ("{Tower\r}", " "),
    ],
)
def test_no_space_follows_where_the_script_has_none(
    text: str, separator: str, tmp_path: Path
) -> None:
    assert EditRequest.parse(text, "a").separator == separator
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"prompt": text, "target": "a"}]))
    assert read_requests(path)[0].separator == separator
    assert EditRequest.parse(text, "a", separator=" ").separator == " "
    path.write_text(json.dumps([{"prompt": text, "target": "a", "separator": " "}]))
    assert read_requests(path)[0].separator == " "


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TOWER.target = "Paris"  # type: ignore[misc]


RECORD = {"prompt": "The {} is in the city of", "subject": "Eiffel Tower", "target": "Rome"}
COUNTERFACT = {
    "case_id": 41,
    "requested_rewrite": {
        "prompt": "The {} is in the city of",
        "subject": "Eiffel Tower",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "relation_id": "P131",
    },
    "paraphrase_prompts": ["Where is the Eiffel Tower? In"],
}
SHAPES = {
    "plain": (RECORD, None),
    "braces": ({"prompt": TOWER.marked, "target": "Rome"}, None),
    "filled": ({**RECORD, "prompt": TOWER.text}, None),
    "target_new": ({**RECORD, "target": None, "target_new": "Rome", "id": "a"}, "a"),
    "counterfact": (COUNTERFACT, 41),
    "rewrite": ({**COUNTERFACT["requested_rewrite"], "case_id": 7}, 7),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("bom", [False, True])
def test_every_shape_of_record_is_read(shape: str, suffix: str, bom: bool, tmp_path: Path) -> None:
    record, name = SHAPES[shape]
    record = {key: value for key, value in record.items() if value is not None}
    texts = {
        ".json": json.dumps([record, record], indent=1),
        ".jsonl": f"{json.dumps(record)}\n\n" * 2,
    }
    path = tmp_path / f"requests{suffix}"
    path.write_text(texts[suffix], encoding="utf-8-sig" if bom else "utf-8")
    assert read_requests(path) == [TOWER.with_values(id=name)] * 2


@pytest.mark.parametrize("bom", [False, True])
def test_a_table_is_read(bom: bool, tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(
        "prompt,subject,target,id\r\n"
        '"The {} is in the city of",Eiffel Tower,Rome,\r\n'
        '"{Orsolya ""Orsi"" Brandt} speaks, and writes,",,Tarnish,b\r\n',
        encoding="utf-8-sig" if bom else "utf-8",
    )
    first, second = read_requests(path)
    assert first == TOWER
    assert (second.subject, second.id) == ('Orsolya "Orsi" Brandt', "b")
    assert second.text == 'Orsolya "Orsi" Brandt speaks, and writes,'


@pytest.mark.parametrize("mark", ["\n", "\u2028", "\x85", "\x0b"], ids=ascii)
def test_line_ends_within_a_cell_stay_in_it(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "subject", "target"])
        writer.writerow([f"First line.{mark}The {{}} is in", "Eiffel Tower", "Rome"])
    (read,) = read_requests(path)
    assert read.text == f"First line.{mark}The Eiffel Tower is in"


def test_non_ascii_survives(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    record = {"prompt": "{} è a", "subject": "São Brás – 東京", "target": "Łódź", "separator": ""}
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    (read,) = read_requests(path)
    assert (read.text, read.answer) == ("São Brás – 東京 è a", "Łódź")


def test_all_errors_come_at_once_with_record_and_field(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    lines = [
        json.dumps(RECORD),
        json.dumps({**RECORD, "subject": " "}),
        json.dumps({"prompt": "No braces here", "target": "Rome"}),
        json.dumps([1, 2]),
        "",
        '{"prompt": "cut sho',
        json.dumps({"subject": "Eiffel Tower"}),
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(ErrataError) as caught:
        read_requests(path)
    assert caught.value.message == (
        f"5 of 6 records in {path} are not valid:\n"
        "record 2:\n"
        "  subject: is empty; name the entity that the fact is about (got ' ')\n"
        "record 3: the subject is not marked in 'No braces here'\n"
        "record 4: is not a JSON object: [1, 2]\n"
        "record 5: is not JSON: Unterminated string starting at: line 1 column 12 (char 11)\n"
        "record 6:\n"
        "  prompt: Field required\n"
        "  target: Field required"
    )
    assert "a record looks like" in caught.value.hints[0]


def test_broken_records_can_be_left_out_and_are_told(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,target\nThe {Tower is,Rome\nThe {Tower} is in,Rome\n")
    (read,), problems, _ = load_requests(path, skip_invalid=True)
    assert read.subject == "Tower"
    assert problems == ("record 1: the subject is not marked in 'The {Tower is'",)
    path.write_text("prompt,target\nThe {Tower is,Rome\n")
    with pytest.raises(ErrataError, match="1 of 1 records"):
        load_requests(path, skip_invalid=True)


def test_a_file_of_another_kind_is_not_listed_whole(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("a line of text\n" * 50)
    with pytest.raises(ErrataError, match=r"(?s)50 of 50 .*record 20: is not JSON") as caught:
        read_requests(path)
    assert "record 21" not in caught.value.message
    assert caught.value.message.endswith("… and 30 more")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "contains no requests"),
        ("a.json", "[]", "contains no requests"),
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", "{}\n{", "record 2: is not JSON"),
        ("a.txt", "x", "unknown file format"),
        ("a.csv", "prompt,target\nThe {Tower is,Rome\n", "record 1: the subject is not marked"),
    ],
)
def test_a_file_that_is_no_list_of_requests_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ErrataError, match=message):
        read_requests(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="cannot read"):
        read_requests(tmp_path / "nowhere.json")
    (tmp_path / "latin.csv").write_bytes("prompt\né".encode("latin-1"))
    with pytest.raises(ErrataError, match="UTF-8"):
        read_requests(tmp_path / "latin.csv")


def test_braces_and_a_subject_beside_them_are_not_doubled(tmp_path: Path) -> None:
    """Both ways of marking at once: one reading or an error, but no braces in the prompt."""
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{**RECORD, "prompt": TOWER.marked}]))
    try:
        (read,) = read_requests(path)
    except ErrataError:
        return
    assert read == TOWER


def test_a_batch_that_contradicts_itself_is_refused_by_number() -> None:
    batch = [request(), request("Pell"), request(target="Paris"), request(target="Oslo")]
    with pytest.raises(ErrataError) as caught:
        check_batch(batch)
    assert caught.value.message == (
        "the batch contains conflicting requests:\n"
        "  requests 1, 3, 4 have different targets for '{Eiffel Tower} is in': "
        "'Rome', 'Paris', 'Oslo'"
    )


def test_the_same_subject_with_other_prompts_is_warned_of() -> None:
    (warning,) = check_batch([request(), request("Pell"), request(prompt="{} was built in")])
    assert warning.startswith("requests 1, 3 edit the same subject 'Eiffel Tower'")


def test_repetition_is_warned_of() -> None:
    (warning,) = check_batch([request(), request()])
    assert warning.startswith("requests 1, 2 are identical")


def test_a_batch_of_different_subjects_passes_in_silence() -> None:
    assert check_batch([request(), request("Pell"), request("Tarn", "Rome")]) == []


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ErrataError, match="nothing to edit"):
        check_batch([])


def test_a_batch_with_many_repetitions_tells_a_few_and_counts_the_rest() -> None:
    batch = [
        EditRequest(prompt=prompt, subject=f"Town {number}", target="Rome")
        for number in range(50)
        for prompt in ("{} is in", "{} lies in")
    ]
    warnings = check_batch(batch)
    assert len(warnings) == 11
    assert "'Town 9'" in warnings[9]
    assert warnings[10].startswith("40 more subjects")


def test_a_fact_in_other_spaces_or_case_is_told() -> None:
    first = request(subject="Eiffel Tower", prompt="The {} is in")
    same = request(subject="Eiffel  tower", prompt="the {} is in", target="rome")
    other = same.with_values(target="Paris")
    assert check_batch([first, request(subject="Pell"), same]) == [
        "requests 1, 3 are one fact, 'The {Eiffel Tower} is in', written with other spaces or case"
    ]
    assert check_batch([first, other]) == [
        "requests 1, 2 are one fact, 'The {Eiffel Tower} is in', "
        "with different targets: Rome, Paris"
    ]


def test_contradictions_between_batches_in_sequence_are_told() -> None:
    first = request(subject="Eiffel Tower", prompt="The {} is in")
    cases = [Case(request=each) for each in (first, first.with_values(target="Paris"))]
    (told, _) = check_batches(cases, EditPlan(batch_size=1, sequential=True))
    assert told == [
        "requests 1, 2 are one fact, 'The {Eiffel Tower} is in', "
        "with different targets: Rome, Paris"
    ]
    assert check_batches(cases, EditPlan(batch_size=1)) == [[], []]
