"""A calibration: what it tries, what it chooses, and that it resumes where it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata import ErrataError
from errata.core.progress import no_progress, say_nothing
from errata.data.case import Case
from errata.experiments.calibration.choice import Trial, chosen, pareto_front
from errata.experiments.calibration.facts import Facts, known_cases, split_facts
from errata.experiments.calibration.measure import Bench, Measured
from errata.experiments.calibration.run import Calibrated, Choices, calibrate
from errata.experiments.calibration.settings import Calibration
from errata.experiments.calibration.space import blocks_of, space_of
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import run_edits
from errata.experiments.fact_editing import Feedback
from errata.methods import METHODS
from errata.methods.moments import moments_for
from errata.methods.preset_files import read_preset
from errata.metrics.scores import Score
from errata.patches.edited_model import EditedModel
from laws.bench import edited_model, moments_of, over_methods, quick, weights
from tiny import FACTS, SENTENCES

CASES = [
    Case(request=fact, target_true="Pell", neighbours=("The sea is in",), paraphrases=("So,",))
    for fact in FACTS
]
FEW = Calibration(
    trials=5, per_search=2, candidates=1, sweep_facts=1, sweep_blocks=2, sweep_steps=2
)


class Silent:
    """A bar that shows nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return no_progress

    def __exit__(self, *_: Any) -> None:
        pass


QUIET = Feedback(Silent, say_nothing, say_nothing)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
    return str(path)


def calibrated(
    edited: EditedModel, results: Path, corpus: str, method_name: str = "memit", **fixed: Any
) -> Calibrated:
    facts = Facts("pico", tuple(CASES[:2]), tuple(CASES[2:]), (0, 0), 0)
    base = quick(method_name, contexts={"prefixes": None, "prefix_lengths": (2,)}, **fixed)
    plan = EditPlan(batch_size=base.batch_limit)
    choices = Choices(base, fixed, plan, FEW, None, corpus)
    return calibrate(edited, facts, choices, results, QUIET)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Calibrated:
    """A calibration that nothing interrupted."""
    return calibrated(edited_model("llama"), tmp_path_factory.mktemp("straight"), corpus)


@over_methods
def test_the_preset_gives_the_scores_that_were_found(
    method_name: str, tmp_path: Path, corpus: str
) -> None:
    edited = edited_model("llama")
    before = weights(edited.model)
    found = calibrated(edited, tmp_path / "c", corpus, method_name)
    assert weights(edited.model) == before and not edited.patches
    assert len(found.trials) == 5 and found.best in found.front
    assert len({json.dumps(trial.point) for trial in found.trials}) > 2
    settings = read_preset(found.folder / "preset.json").settings
    assert settings == found.preset.settings
    cls = METHODS[method_name]
    method = cls.settled(settings)
    choices = EditPlan(batch_size=method.batch_limit)
    other = edited_model("llama")
    assert found.best.measured is not None
    for cases, scores in ((CASES[:2], found.best.measured.scores), (CASES[2:], found.after)):
        moments, _ = moments_for(other, method, None, corpus)
        run = run_edits(other, cases, method, moments, choices, tmp_path / str(len(scores)))
        assert run.summary["after"] == scores
        while other.patches:
            other.undo()


def test_its_files(straight: Calibrated) -> None:
    found = straight
    assert found.folder.parts[-2:] == ("calibrate", "run_000")
    summary = json.loads((found.folder / "summary.json").read_text("utf-8"))
    assert {n: v for n, v in summary.items() if n != "dials"} == found.as_json()
    cheap = {dial["name"] for dial in summary["dials"] if dial["cheap"]}
    assert cheap == {"relative_weight", "span"}
    report = (found.folder / "report.md").read_text("utf-8")
    assert f"Chosen: trial {found.best.number}" in report and "Pareto front" in report
    assert (found.folder / "trade_off.png").stat().st_size > 10_000
    assert not (found.folder / "shared").exists() and not (found.folder / "held_out").exists()
    evidence = found.preset.evidence
    assert evidence.facts == 2 and evidence.calibrated_on == 2
    assert evidence.scores["efficacy"].value == found.after["efficacy"].value
    assert found.preset.scale_free.keys() == {"moment_weight", "relative_weight"}


@pytest.mark.parametrize(
    "after", [1, 4, *(pytest.param(after, marks=pytest.mark.slow) for after in (0, 2))]
)
def test_a_killed_calibration_resumes(
    tmp_path: Path,
    corpus: str,
    straight: Calibrated,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    calls, searches, real, begun = [0], [0], Bench.measure, METHODS["memit"].find_targets

    def measure(*arguments: Any) -> Any:
        if calls[0] >= after:
            raise KeyboardInterrupt
        calls[0] += 1
        return real(*arguments)

    def find_targets(*arguments: Any) -> Any:
        searches[0] += 1
        return begun(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            calibrated(edited_model("llama"), tmp_path / "killed", corpus)
    monkeypatch.setattr(METHODS["memit"], "find_targets", find_targets)
    resumed = calibrated(edited_model("llama"), tmp_path / "killed", corpus)
    assert resumed.folder.name == "run_000"
    assert resumed.as_json() == straight.as_json()
    groups = {0: 3, 1: 2, 2: 2, 4: 1}[after]  # a group's targets are read back from the disk
    assert searches[0] == groups + 1, "and one search for the held-out facts"


def test_flags_fix_settings_and_blocks(tmp_path: Path, corpus: str) -> None:
    fixed = {"blocks": (2,), "moment_weight": 2.0}
    found = calibrated(edited_model("llama"), tmp_path, corpus, **fixed)
    names = {name for trial in found.trials for name in trial.point}
    assert "search.clamp" in names and not names & {"block", "span", "relative_weight"}
    assert found.preset.settings["blocks"] == [2] and found.preset.settings["moment_weight"] == 2
    assert not (found.folder / "candidates.json").exists()


def test_settings_that_fail_are_trials_without_a_result(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Bench.measure, [0]

    def measure(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] in (1, 3):
            raise ErrataError("the target search diverged")
        return real(*arguments)

    monkeypatch.setattr(Bench, "measure", measure)
    found = calibrated(edited_model("llama"), tmp_path / "some", corpus)
    assert [t.error is None for t in found.trials] == [False, True, False, True, True]
    assert "2 without a result" in (found.folder / "report.md").read_text("utf-8")
    calls[0] = 0

    def never(*_: Any) -> Any:
        raise ErrataError("the target search diverged")

    monkeypatch.setattr(Bench, "measure", never)
    with pytest.raises(ErrataError, match="no settings work: the target search diverged"):
        calibrated(edited_model("llama"), tmp_path / "none", corpus)


def test_facts_that_the_model_does_not_know_are_dropped() -> None:
    edited, cases = edited_model("llama"), [CASES[0], CASES[1], CASES[3]]
    known = known_cases(edited, cases)
    swapped = [
        case.with_values(
            request=case.request.with_values(target=case.target_true),
            target_true=case.request.target,
        )
        for case in cases
    ]
    others = known_cases(edited, swapped)
    assert len(known) + len(others) == len(cases) and known and others
    everything = [*known, *others]
    mixed = [known[0], swapped[cases.index(known[0])], everything[-1]]
    facts = split_facts(edited, "some/where.json", mixed, 1)
    assert facts.chosen_on == (known[0],) and facts.dropped == (1, 0)
    assert "of where.json" in facts.lines()[0] and "dropped 1" in facts.lines()[0]
    bare = [Case(request=fact) for fact in FACTS]
    assert split_facts(edited, "facts", bare, 1).unknown == len(FACTS)
    with pytest.raises(ErrataError, match="cannot be split"):
        split_facts(edited, "facts", bare, len(bare))
    with pytest.raises(ErrataError, match="knows none of the facts to hold out"):
        split_facts(edited, "facts", [known[0], swapped[cases.index(known[0])]], 1)


def trial(number: int, *values: float, drift: float = 0.1) -> Trial:
    scores = {
        kind: Score(value=value, low=0.0, high=1.0, n=10)
        for kind, value in zip(("efficacy", "paraphrase", "neighbourhood"), values, strict=True)
    }
    return Trial(number, {}, Measured(scores, drift, {}))


def test_the_front_and_the_choice() -> None:
    poor = trial(0, 0.5, 0.5, 0.5)
    strong = trial(1, 1.0, 0.9, 0.6, drift=0.2)
    gentle = trial(2, 0.6, 0.6, 0.95, drift=0.01)
    failed = Trial(3, {}, None, "diverged")
    even = trial(4, 0.96, 0.9, 0.8, drift=0.15)
    front = pareto_front([poor, strong, gentle, failed, even])
    assert [each.number for each in front] == [1, 2, 4]
    assert chosen(front).number == 4
    assert chosen([poor, gentle]).number == 2, "where no point reaches the floor"
    tied = trial(5, 0.96, 0.9, 0.799, drift=0.05)
    assert chosen([even, tied]).number == 5, "the smaller drift decides"
    worse = trial(6, 0.96, 0.9, 0.7, drift=0.001)
    assert chosen([even, worse]).number == 4


def test_the_space_of_a_method() -> None:
    space = space_of(quick("memit"), {"search": {"clamp": 2.0}}, (1, 2), moments_of("llama"))
    names = [dial.name for dial in space.dials]
    assert "search.clamp" not in names and {"block", "span", "relative_weight"} <= set(names)
    assert space.start["block"] == 2 and space.start["relative_weight"] == 1.0
    point = {**space.start, "block": 1, "span": 3, "relative_weight": 7.0}
    method = space.method(point)
    assert method.edited_blocks == (0, 1) and method.model_dump()["relative_weight"] == 7.0
    assert blocks_of(5, 3) == (3, 4, 5)
    rome = space_of(quick("rome"), {}, (1, 2), moments_of("llama"))
    assert rome.cheap == ("second_moment",) and rome.per_search(6) == 2
    assert "span" not in rome.start
    assert space_of(quick("rome"), {}, (1,), {}).per_search(6) == 1
