"""Runs on disk: the references' folders as published, broken files left out, ours read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import ErrataError
from errata.experiments.published_results import published_summary, read_published_run
from errata.experiments.results import read_runs
from errata.experiments.run_folder import unfinished_runs


def half(new: float, true: float, *, neighbour: float = 5.0) -> dict[str, Any]:
    """One half of a reference's case: the edit and two paraphrases alike, one neighbour."""
    probs = {"target_new": new, "target_true": true}
    return {
        "rewrite_prompts_probs": [probs],
        "paraphrase_prompts_probs": [probs, probs],
        "neighborhood_prompts_probs": [{"target_new": neighbour, "target_true": 1.0}],
        "rewrite_prompts_correct": [new < true],
        "paraphrase_prompts_correct": [True, False],
        "neighborhood_prompts_correct": [True],
    }


def write_case(folder: Path, number: int, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"4_edits-case_{number}.json"
    path.write_text(json.dumps({"case_id": number, **content}), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A reference's run of three cases, one of which was never asked before the edit."""
    folder = tmp_path / "MEMIT" / "run_000"
    write_case(folder, 2, time=3.0, pre=half(4.0, 1.0), post=half(1.0, 4.0))
    write_case(folder, 10, time=1.0, pre={}, post={**half(4.0, 1.0), "ngram_entropy": 6.0})
    write_case(folder, 1, time=2.0, pre=half(4.0, 1.0), post=half(1.0, 4.0, neighbour=0.5))
    return folder


def test_a_reference_run_in_our_figures(run: Path) -> None:
    (record,) = read_runs(run.parent)
    assert [case.id for case in record.cases] == [1, 2, 10]
    assert record.name == "MEMIT/run_000"
    after, before = record.summary("after"), record.summary("before")
    assert (after["efficacy"].value, after["efficacy"].n) == (pytest.approx(2 / 3), 3)
    assert (after["paraphrase"].n, before["paraphrase"].n) == (6, 4)
    assert after["paraphrase_accuracy"].value == 0.5
    assert after["neighbourhood"].value == pytest.approx(2 / 3)
    assert after["efficacy_magnitude"].value == pytest.approx((math.exp(-1) - math.exp(-4)) / 3)
    assert after["score"].value == pytest.approx(2 / 3)
    assert before["efficacy"].value == before["score"].value == 0.0
    assert after["fluency"].value == 6.0
    assert str(after["fluency"]).startswith("6 [")


def test_as_the_references_print_it(run: Path) -> None:
    record = read_published_run(run)
    assert record is not None
    found = published_summary(record)
    assert found["time"] == (2.0, pytest.approx(math.sqrt(2 / 3)))
    assert found["post_rewrite_success"] == (66.67, 47.14)
    assert found["post_ngram_entropy"] == (600.0, 0.0)
    assert found["pre_score"][0] == 0.0
    assert found["post_score"][0] == pytest.approx(66.67)
    assert math.isnan(found["post_score"][1])
    assert "pre_ngram_entropy" not in found


def test_a_torn_file_is_named_and_no_other_counted_twice(run: Path) -> None:
    """E4: the reference would count case 1 again in place of the torn case 2."""
    whole = published_summary(read_runs(run)[0])
    path = run / "4_edits-case_2.json"
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    (record,) = read_runs(run)
    assert record.unreadable == (path.name,)
    assert [case.id for case in record.cases] == [1, 10]
    assert published_summary(record)["time"] == (1.5, 0.5)
    assert published_summary(record) != whole


def test_the_first_cases_are_told_by_their_ids(run: Path) -> None:
    """E4: every file is asked, so that no order of ids ends the count early."""
    (record,) = read_runs(run)
    assert [case.id for case in record.first(2).cases] == [1]
    assert [case.id for case in record.first(11).cases] == [1, 2, 10]
    assert record.first(1).summary("after") == {}
    assert published_summary(record.first(1)) == {}


def test_zsre_runs_hold_tokens_alone(tmp_path: Path) -> None:
    for number, hits in enumerate(([True, False], [True, True])):
        told = {
            f"{kind}_prompts_correct": hits for kind in ("rewrite", "paraphrase", "neighborhood")
        }
        write_case(tmp_path / "run_000", number, post=told)
    (record,) = read_runs(tmp_path)
    after = record.summary("after")
    assert "efficacy" not in after
    assert after["efficacy_tokens"].value == 0.75
    assert after["efficacy_accuracy"].value == 0.5
    assert after["neighbourhood_tokens"].n == 4
    found = published_summary(record)
    assert found == {
        f"post_{kind}_acc": (75.0, 25.0) for kind in ("rewrite", "paraphrase", "neighborhood")
    }


def test_older_runs_without_accuracies(tmp_path: Path) -> None:
    told = {key: value for key, value in half(1.0, 2.0).items() if key.endswith("probs")}
    write_case(tmp_path / "run_000", 0, post=told)
    after = read_runs(tmp_path)[0].summary("after")
    assert after["efficacy"].value == 1.0
    assert not [name for name in after if name.endswith(("accuracy", "tokens"))]


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="contains no runs"):
        read_runs(tmp_path)
    with pytest.raises(ErrataError, match="there is no folder"):
        read_runs(tmp_path / "nothing")


def test_a_stopped_run_is_named_with_the_command_that_goes_on(run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "eval" / "run_000"
    stopped.mkdir(parents=True)
    (stopped / "params.json").write_text('{"command": "errata eval pico"}', encoding="utf-8")
    (run / "params.json").write_text('{"alg_name": "MEMIT"}', encoding="utf-8")
    with pytest.raises(ErrataError, match="contains no finished runs") as raised:
        read_runs(tmp_path / "eval")
    assert f"{stopped} is unfinished" in raised.value.hints[0]
    assert raised.value.hints[0].endswith("repeat its command to resume it: errata eval pico")
    assert [record.name for record in read_runs(tmp_path)] == ["MEMIT/run_000"]
    assert list(unfinished_runs(tmp_path)) == [stopped]
    (stopped / "params.json").write_text("[1", encoding="utf-8")
    assert list(unfinished_runs(tmp_path)) == []
    (stopped / "params.json").write_text('{"command": null}', encoding="utf-8")
    assert unfinished_runs(tmp_path)[stopped].endswith("repeat its command to resume it")
    (stopped / "summary.json").write_text("{}", encoding="utf-8")
    assert list(unfinished_runs(tmp_path)) == []


def test_a_run_beside_which_one_stands_is_called_by_its_folder_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert [record.name for record in read_runs(Path("run_000"))] == ["run_000"]
    monkeypatch.chdir(run)
    assert [record.name for record in read_runs(Path())] == ["."]


def test_runs_of_which_nothing_can_be_read_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "run_000").mkdir()
    (tmp_path / "run_000" / "cases.jsonl").write_text("{torn\n\n[", encoding="utf-8")
    write_case(tmp_path / "run_001", 0).write_text("{", encoding="utf-8")
    with pytest.raises(ErrataError, match=r"no case .* can be read") as raised:
        read_runs(tmp_path)
    assert "cases.jsonl, line 1" in raised.value.message
    assert "4_edits-case_0.json" in raised.value.message


def test_a_line_of_ours_that_was_torn_is_named(tmp_path: Path) -> None:
    score = {"kind": "efficacy", "prompt": "p", "true": None, "own": False, "success": None}
    score["new"] = {"nll": 1.0, "likeliest": True, "correct": [True]}
    line = json.dumps({"case_id": 0, "after": [score]})
    (tmp_path / "cases.jsonl").write_text(f"{line}\n{line[:30]}\n", encoding="utf-8")
    (record,) = read_runs(tmp_path)
    assert record.unreadable == ("cases.jsonl, line 2",)
    assert record.summary("after")["efficacy_tokens"].value == 1.0
