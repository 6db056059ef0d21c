"""A method that is no closed form goes wherever a method goes.

`Nudge` adds a fixed dense matrix to one attention weight: no keys, no targets, no moments, no
prefixes. It defines `edit` and `costs` and overrides only where it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner

import errata
from errata.cli.main import app
from errata.core.cost import Cost
from errata.core.errors import ErrataError
from errata.data.case import Case
from errata.data.request import EditRequest
from errata.experiments.edit_plan import EditPlan
from errata.experiments.edit_run import Run, run_edits
from errata.experiments.recipe.run import Surroundings, run_recipe
from errata.experiments.recipe.schema import recipe_of
from errata.experiments.survival.measure import Questions
from errata.experiments.survival.run import run_survival
from errata.experiments.survival.settings import Matrix
from errata.methods import METHODS, Method
from errata.methods.base import Job
from errata.models.families import oriented, weight_of
from errata.patches.edited_model import EditedModel
from errata.patches.update import Update
from errata.patches.weight_patch import WeightPatch
from errata.statistics.second_moment import SecondMoment
from laws.bench import found, weights
from tiny import FACTS, tiny_model, tiny_tokenizer
from tuning.pico import QUICK, ROWS

BLOCK = 1
WEIGHT = f"model.layers.{BLOCK}.self_attn.o_proj.weight"
PLANS = {
    "apart": EditPlan(batch_size=1),
    "stacked": EditPlan(batch_size=2, sequential=True),
    "at once": EditPlan(),
}


class Nudge(Method):
    """Add a fixed matrix to one attention weight, whatever is asked."""

    name: ClassVar[str] = "nudge"
    label: ClassVar[str] = "Nudge"

    size: float = 0.01
    """Standard deviation of the entries."""

    @property
    def edited_blocks(self) -> tuple[int, ...]:
        return (BLOCK,)

    def weight_names(self, model: PreTrainedModel) -> tuple[str, ...]:
        return (WEIGHT,)

    def edit(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        *,
        moments: Mapping[int, SecondMoment],
        job: Job | None = None,
        notes: Sequence[str] = (),
        command: str | None = None,
    ) -> WeightPatch:
        module, parameter = weight_of(edited.model, WEIGHT)
        d_out, d_in = oriented(module, parameter).shape
        source = torch.Generator().manual_seed(len(edited.patches))
        delta = self.size * torch.randn(d_out, d_in, generator=source)
        provenance = self.provenance(
            edited, requests, [WEIGHT], notes=tuple(notes), command=command
        )
        return WeightPatch({WEIGHT: Update(None, delta, torch.zeros(d_in, 1))}, provenance)

    def costs(
        self,
        edited: EditedModel,
        requests: Sequence[EditRequest],
        batch_sizes: Sequence[int],
        scoring: Cost,
    ) -> list[Cost]:
        entries = weight_of(edited.model, WEIGHT)[1].numel()
        return [Cost("nudge", len(batch_sizes) * entries, 1e-3, 4 * entries, 4 * entries)]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, Nudge.name, Nudge)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pico model, requests and cases on disk, in the present folder."""
    tiny_model("llama").save_pretrained(tmp_path / "pico")
    tiny_tokenizer().save_pretrained(tmp_path / "pico")
    rows = [fact.model_dump(exclude_defaults=True) | {"target_true": "Hesk"} for fact in FACTS]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path


CASES = [
    Case(request=fact, target_true="Hesk", paraphrases=("So,",), neighbours=("Marrow lies in",))
    for fact in FACTS
]


def edit(*arguments: str) -> Any:
    words = ["edit", "pico", *arguments, "--method", "nudge", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def fresh() -> EditedModel:
    return EditedModel(tiny_model("llama"), tiny_tokenizer(), "tiny")


def test_one_fact_is_edited_from_the_command_line(folder: Path) -> None:
    told = edit("The {Lantern Bridge} is in the city of", "Quenby")
    assert (told["method"], told["requests"], len(told["answers"])) == ("nudge", 1, 1)
    (path,) = told["patches"]
    patch = WeightPatch.load(path)
    assert list(patch.updates) == [WEIGHT]
    assert patch.provenance.settings == {"size": 0.01}
    model = errata.load("pico", patches=[path]).model
    changed = [
        name
        for (name, now), was in zip(
            model.named_parameters(), tiny_model("llama").parameters(), strict=True
        )
        if not torch.equal(now, was)
    ]
    assert changed == [WEIGHT]


@pytest.mark.parametrize(
    ("how", "patches", "answers"),
    [((), 1, 4), (("--batch-size", "2"), 2, 0), (("--batch-size", "2", "--sequential"), 2, 4)],
)
def test_a_dataset_is_edited_from_the_command_line(
    how: tuple[str, ...], patches: int, answers: int, folder: Path
) -> None:
    told = edit("--dataset", "cases.jsonl", *how)
    assert (len(told["patches"]), len(told["answers"])) == (patches, answers)
    assert told["summary"]["efficacy"]["n"] == len(FACTS)
    last = WeightPatch.load(told["patches"][-1])
    assert len(last.provenance.parents) == (1 if "--sequential" in how else 0)


def test_a_dry_run_shows_its_cost_and_does_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    told = edit("--dataset", "cases.jsonl", "--dry-run")
    assert [cost["what"] for cost in told["costs"]] == ["nudge", "scores", "in all"]
    assert told["plan"][0] == "Nudge at block 1"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("plan", PLANS)
def test_a_killed_run_resumed_is_the_uninterrupted_run(plan: str, tmp_path: Path) -> None:
    def run(results: Path) -> tuple[Run, EditedModel]:
        edited = fresh()
        return run_edits(edited, CASES, Nudge(), {}, PLANS[plan], results), edited

    straight, straight_model = run(tmp_path / "straight")
    real, calls = Nudge.edit, list[int]()

    def dying(self: Nudge, *arguments: Any, **named: Any) -> WeightPatch:
        calls.append(len(calls))
        if len(calls) > len(straight.patches) - 1:
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Nudge, "edit", dying)
        run(tmp_path / "killed")
    resumed, model = run(tmp_path / "killed")
    assert resumed.resumed
    for path in sorted(straight.folder.iterdir()):
        if path.is_file():
            assert (resumed.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert weights(model.model) == weights(straight_model.model)


def test_programs_edit_with_it_and_the_model_is_left_as_found() -> None:
    edited = fresh()
    before = found(edited.model)
    patch = errata.edit(edited, FACTS[:2], "nudge", size=0.1)
    assert edited.patches == [patch]
    assert found(edited.model) != before
    edited.undo()
    assert found(edited.model) == before


def test_a_setting_that_it_lacks_is_an_error() -> None:
    with pytest.raises(ErrataError, match="blocks"):
        errata.edit(fresh(), FACTS[0], "nudge", blocks=(1,))


@contextmanager
def no_bar(title: str) -> Iterator[Any]:
    yield lambda done, total: None


def test_a_recipe_edits_and_evaluates_with_it(folder: Path) -> None:
    recipe = recipe_of(
        {
            "model": "pico",
            "edit": {"method": "nudge", "dataset": "cases.jsonl", "settings": {"size": 0.1}},
            "eval": [{}],
        }
    )
    done = run_recipe(recipe, Surroundings(folder / "results", folder, no_bar, [].append))
    assert list(done.stages) == ["edit", "eval_0"]
    (name,) = done.stages["edit"]["patches"]
    assert WeightPatch.load(folder / "results" / name).provenance.settings == {"size": 0.1}


def test_survival_tunes_where_it_has_edited(tmp_path: Path) -> None:
    quick = {k: v for k, v in QUICK.items() if k != "max_steps"}
    matrix = Matrix.checked(
        {
            "methods": ("nudge",),
            "edits": (2,),
            "tunings": ("lora@edited",),
            "data": "rows",
            "tune": {**quick, "max_steps": 1},
            "settings": {"nudge": {"size": 0.1}},
        }
    )
    questions = Questions(CASES[:2], CASES[2:], [], [], "plain", 4)
    summary, folder = run_survival(matrix, fresh, questions, ROWS, tmp_path)
    assert [cell["method"] for cell in summary["configurations"]] == ["Nudge"]
    told = json.loads(next((folder / "configurations").glob("*.json")).read_text("utf-8"))
    assert told["blocks"] == [BLOCK]
