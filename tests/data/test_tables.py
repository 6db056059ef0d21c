"""Tables as spreadsheets write them: delimiters, byte order marks, blank rows, wrong rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.core.errors import ErrataError
from errata.data.datasets import read_cases
from errata.data.request import EditRequest
from errata.data.request_files import load_requests, read_requests

TOWER = EditRequest(prompt="The {} is in", subject="Eiffel Tower", target="Rome")
TABLES = {
    "comma": ("a.csv", "prompt,subject,target\nThe {} is in,Eiffel Tower,Rome\n"),
    "semicolon": ("a.csv", "prompt;subject;target\nThe {} is in;Eiffel Tower;Rome\n"),
    "tab": ("a.csv", "prompt\tsubject\ttarget\nThe {} is in\tEiffel Tower\tRome\n"),
    "tsv": ("a.tsv", "prompt\tsubject\ttarget\nThe {} is in\tEiffel Tower\tRome\n"),
    "excel": ("a.csv", "sep=;\r\nprompt;subject;target\r\nThe {} is in;Eiffel Tower;Rome\r\n"),
    "header": ("a.csv", ' Prompt ,SUBJECT,"Target"\nThe {} is in,Eiffel Tower,Rome\n'),
    "spaced name": ("a.csv", "prompt,subject,Target New\nThe {} is in,Eiffel Tower,Rome\n"),
    "blank rows": ("a.csv", "prompt,subject,target\nThe {} is in,Eiffel Tower,Rome\n,,\n\n , ,\n"),
    "trailing delimiter": ("a.csv", "prompt,subject,target\nThe {} is in,Eiffel Tower,Rome,,\n"),
    "quotes": ("a.csv", '"prompt";"subject";"target"\n"The {} is in";"Eiffel Tower";"Rome"\n'),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_read_as_requests_and_as_cases(kind: str, encoding: str, tmp_path: Path) -> None:
    name, text = TABLES[kind]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_requests(tmp_path / name) == [TOWER]
    (case,) = read_cases(str(tmp_path / name))
    assert case.request == TOWER.with_values(id=0)


def test_a_row_with_too_many_cells_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,subject,target\nThe {} is in,Eiffel Tower,Rome\n"
        "In 1889, the {} was in,Eiffel Tower,Rome\n"
    )
    for read in (read_requests, read_cases):
        with pytest.raises(ErrataError) as raised:
            read(str(path))
        assert "record 2: has 4 cells, but there are 3 columns (prompt, subject, target)" in str(
            raised.value
        )
    (kept,), problems, _ = load_requests(path, skip_invalid=True)
    assert kept == TOWER
    assert len(problems) == 1


def test_the_columns_that_there_are_are_named_where_one_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Question,subject,answer\nThe {} is in,Eiffel Tower,Rome\n")
    with pytest.raises(ErrataError, match=r"fields: question, subject, answer"):
        read_requests(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,target,Target\nThe {Tower} is in,Rome,Paris\n")
    with pytest.raises(ErrataError, match="several columns named 'target'"):
        read_requests(path)


@pytest.mark.parametrize("target", ["NA", "007", "1.50", "1e3", "null", "TRUE", "12,5"])
def test_cells_stay_the_text_that_they_are(target: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,subject,target\nThe {{}} is in,Eiffel Tower,"{target}"\n')
    assert read_requests(path)[0].target == target


@pytest.mark.parametrize(("value", "target"), [(42, "42"), (1.5, "1.5"), ("042", "042")])
def test_numbers_of_json_are_read_as_text(value: object, target: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{**TOWER.model_dump(), "id": 7, "target": value}]))
    (request,) = read_requests(path)
    assert (request.target, request.id) == (target, 7)


def test_truth_values_are_no_targets(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{**TOWER.model_dump(), "target": True}]))
    with pytest.raises(ErrataError, match="target"):
        read_requests(path)


def test_requests_are_read_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "The {} is in", "subject": "Eiffel Tower", "target": "Rome"}]
    asked = []
    monkeypatch.setattr("errata.data.records.hub_rows", lambda *given: asked.append(given) or rows)
    assert read_requests("hf:owner/facts:small") == [TOWER]
    assert read_cases("hf:owner/facts:small")[0].request == TOWER.with_values(id=0)
    assert asked == [("owner/facts", "small", "train", None)] * 2
