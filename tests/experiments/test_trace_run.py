"""Traces of a dataset: what the model does not know is left out, what was stopped goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.datasets import read_cases
from errata.experiments import trace_run
from errata.experiments.trace_run import TraceRun, noise_level, summary_of, trace_cases
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel, load
from errata.tracing.causal import trace_question
from errata.tracing.corruption import embedding_deviation, kept_deviation
from errata.tracing.question import ask_model
from errata.tracing.settings import TraceSettings
from errata.tracing.trace import Trace
from laws.bench import edited_model
from tiny import FACTS

SETTINGS = TraceSettings(kinds=("hidden", "mlp"), samples=2, subject_last_only=True)


@pytest.fixture(scope="module")
def demo() -> EditedModel:
    return load("demo")


def some_cases() -> list[Case]:
    """Return facts that the demo knows and, among them, one that it does not."""
    known = read_cases("demo-known", 4)
    odd = Case(request=known[0].request.with_values(target="Tarn", id="odd"))
    return [known[0], odd, *known[1:]]


def run(
    edited: EditedModel, results: Path, progress: object = None, again: bool = False
) -> TraceRun:
    how = {"again": again} | ({"progress": progress} if progress else {})
    return trace_cases(edited, some_cases(), SETTINGS, 0.4, results, **how)  # type: ignore[arg-type]


def outcome(folder: Path) -> dict[str, bytes]:
    """Return every file of a run but params, to the byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "params.json"
    }


def test_what_is_not_known_is_left_out_with_the_reason(demo: EditedModel, tmp_path: Path) -> None:
    found = run(demo, tmp_path)
    assert found.indices == [0, 2, 3, 4] and all(trace.known for trace in found.traces)
    (reason,) = found.left_out
    assert "the model says 'pl" in reason and "not 'Tarn'" in reason
    summary = json.loads((found.folder / "summary.json").read_text("utf-8"))
    assert (summary["facts"], summary["left_out"]) == (len(found.traces), len(found.left_out))
    assert summary["reasons"] == found.left_out
    kept = [Trace.load(path) for path in sorted((found.folder / "facts").glob("*.npz"))]
    assert [trace.text for trace in kept] == [trace.text for trace in found.traces]
    assert [some_cases()[i].request.text for i in found.indices] == [t.text for t in kept]
    held = np.load(found.folder / "facts" / f"{found.indices[0]:05d}.npz", allow_pickle=False)
    assert held["scores.mlp"].shape == (1, 8, 2)


def test_a_stopped_run_goes_on_and_ends_the_same(demo: EditedModel, tmp_path: Path) -> None:
    straight = run(demo, tmp_path / "straight")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(demo, tmp_path / "stopped", stop)
    first = sorted((tmp_path / "stopped").rglob("*.npz"))[0]
    written = first.stat().st_mtime_ns
    resumed = run(demo, tmp_path / "stopped")
    assert resumed.resumed and resumed.folder == tmp_path / "stopped" / "trace" / "run_000"
    assert first.stat().st_mtime_ns == written
    assert outcome(resumed.folder) == outcome(straight.folder)


def test_a_finished_run_is_found_again(
    demo: EditedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(demo, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trace_run, "trace_question", None)
        found = run(demo, tmp_path)
    assert not first.before and found.before and found.folder == first.folder
    assert (found.indices, found.left_out) == (first.indices, first.left_out)
    assert summary_of(found) == summary_of(first)
    once_more = run(demo, tmp_path, again=True)
    assert once_more.folder.name == "run_001" and not once_more.before
    ours, theirs = outcome(once_more.folder), outcome(first.folder)
    assert ours.pop("report.md") != theirs.pop("report.md") and ours == theirs  # it has a title
    assert run(demo, tmp_path).folder == once_more.folder
    next((once_more.folder / "facts").iterdir()).unlink()
    assert run(demo, tmp_path).folder.name == "run_002"


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_finished(tmp_path: Path) -> None:
    """kill -9 in the middle of the demo's facts, then the same command again."""
    code = (
        "import os, signal\nfrom errata.experiments import trace_run as trace_runs\n"
        "from errata.cli.main import main\n"
        "real = trace_runs.trace_question\ncalls = []\n"
        "def count(*args, **how):\n"
        "    calls.append(1)\n"
        "    if len(calls) > int(os.environ['DIE_AFTER']):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*args, **how)\n"
        "trace_runs.trace_question = count\nmain()\n"
    )
    verb = ["trace", "demo", "--dataset", "demo-known", "--limit", "4", "--plot", "none"]
    verb += ["--samples", "2", "--results", str(tmp_path), "--json"]

    def called(die_after: int) -> subprocess.CompletedProcess[str]:
        surroundings = {**os.environ, "DIE_AFTER": str(die_after), "ERRATA_CACHE": str(tmp_path)}
        command = [sys.executable, "-c", code, *verb]
        return subprocess.run(command, env=surroundings, capture_output=True, text=True)

    assert called(2).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "trace" / "run_000" / "facts").iterdir())) == 2
    done = called(2)  # the two that are missing are as many as it may trace
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["facts"] == 4 and told["run"].endswith("run_000")


def test_what_the_model_says_ends_where_it_leaves_the_answer(
    demo: EditedModel, tmp_path: Path
) -> None:
    """Behind the first other token it was asked with the answer before it: that is no text."""
    case = some_cases()[0]
    odd = case.with_values(request=case.request.with_values(target="Tarn and then the river"))
    asked = ask_model(
        demo.model, demo.tokenizer, odd.request.text, odd.request.span, odd.request.answer
    )
    said = demo.tokenizer.decode(asked.said[:1]).strip()
    assert len(asked.said) > 3 and asked.said[0] != asked.targets[0]
    assert asked.spoken == asked.said[:1]
    found = trace_cases(demo, [odd], SETTINGS, 0.4, tmp_path)
    assert f"the model says {said!r}, not" in found.left_out[0]
    for name in ("summary.json", "report.md"):
        assert f"the model says {said!r}, not" in (found.folder / name).read_text("utf-8")
    trace = trace_question(demo.model, demo.tokenizer, asked, SETTINGS, 0.4)
    assert trace.said == said and not trace.known
    right = replace(asked, said=asked.targets)
    assert right.known and right.spoken == right.targets
    half = replace(asked, said=(*asked.targets[:2], 1, 1, 1, 1))
    assert half.spoken == half.said[:3]


def test_nothing_known_is_an_error(tmp_path: Path) -> None:
    edited = edited_model("llama")
    cases = [Case(request=FACTS[0].with_values(target="Tarn"))]
    found = trace_cases(edited, cases, SETTINGS, 0.4, tmp_path)
    assert not found.traces and "the model says" in found.left_out[0]
    with pytest.raises(ErrataError, match="none of 1 facts"):
        _ = found.averages


def test_the_deviation_is_that_of_all_entries(tmp_path: Path) -> None:
    edited = edited_model("gpt2")
    subjects = [fact.subject for fact in FACTS]
    ids = [i for subject in subjects for i in edited.tokenizer(subject)["input_ids"]]
    table = edited.model.get_submodule(family_of(edited.model).embedding).weight.detach()
    expected = float(table[torch.tensor(ids)].double().std())
    found = embedding_deviation(edited.model, edited.tokenizer, subjects)
    assert found == pytest.approx(expected, rel=1e-9)
    assert kept_deviation(edited.model, edited.tokenizer, subjects, tmp_path) == found
    (kept,) = tmp_path.iterdir()
    kept.write_text(json.dumps({"deviation": 7.0}))
    assert kept_deviation(edited.model, edited.tokenizer, subjects, tmp_path) == 7.0
    fewer = kept_deviation(edited.model, edited.tokenizer, subjects[:2], tmp_path)
    assert fewer not in (7.0, found) and len(list(tmp_path.iterdir())) == 2
    kept.write_text("{")
    assert kept_deviation(edited.model, edited.tokenizer, subjects, tmp_path) == found
    with torch.no_grad():
        table.view(-1)[0] += 1
    assert kept_deviation(edited.model, edited.tokenizer, subjects, tmp_path) != 7.0


def test_levels(tmp_path: Path) -> None:
    edited = edited_model("gpt2")
    assert noise_level(edited, TraceSettings(level="0.25"), [])[0] == 0.25
    level, said = noise_level(edited, TraceSettings(level="2s"), ["Velmora"])
    one = embedding_deviation(edited.model, edited.tokenizer, ["Velmora"])
    assert level == pytest.approx(2 * one) and "this subject's" in said
