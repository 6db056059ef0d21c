"""Reading recipes: what is wrong is told at once, changes go on top, YAML stays plain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.cli.model_options import OnModel
from errata.core.errors import ErrataError
from errata.experiments.recipe.schema import EvalStage, Recipe, read_recipe, recipe_of
from errata.experiments.recipe.yaml_text import change_value
from errata.methods import METHODS
from errata.models.loading import DTYPES

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
PLAIN = """
model: demo
edit: {dataset: demo, limit: 4}
eval: {generate: true}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_recipes(path: Path) -> None:
    assert read_recipe(path).edit is not None


def test_short_forms_are_the_long_ones(tmp_path: Path) -> None:
    short = read_recipe(written(tmp_path, PLAIN))
    assert short == recipe_of(
        {
            "eval": [{"generate": True}],
            "edit": {"dataset": "demo", "limit": 4, "method": "MEMIT"},
            "model": {"name": "demo"},
        }
    )
    assert [name for name, _ in short.stages()] == ["edit", "eval_0"]
    assert short.eval == (EvalStage(generate=True),)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "hparams.json").write_text('{"layers": [1], "colour": 3}', encoding="utf-8")
    path = written(
        tmp_path,
        f"""
model: {{nam: demo, dtype: int8}}
edit:
  dataset: nowhere
  limit: 0
  method: rome
  hparams: {tmp_path / "hparams.json"}
  settings: {{blcks: [1], search: {{steps: many}}}}
eval: {{generat: true}}
tune: {{}}
""",
    )
    with pytest.raises(ErrataError) as caught:
        read_recipe(path)
    for told in (
        "model.name: Field required",
        "model.nam: is not known here (got 'demo')",
        "model.dtype: Input should be 'auto', 'float64', 'float32', 'bfloat16' or 'float16' "
        "(got 'int8')",
        "edit.dataset: is neither a known dataset nor a file; see `errata ls datasets` "
        "(got 'nowhere')",
        "edit.limit: Input should be greater than or equal to 1 (got 0)",
        "eval.0.generat: is not known here (got True)",
        "edit.settings.search.steps: Input should be a valid integer",
        "edit.settings.blcks: is not known here (got [1])",
        "edit.hparams: ",
        "colour",
    ):
        assert told in caught.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: demo", "there are no stages"),
        ("{model: demo, eval: {}}", "a dataset is required"),
        (
            "{model: demo, eval: {dataset: demo, max_new_tokens: 5}}",
            "apply to generated text; add generate: true",
        ),
        (
            "{model: demo, eval: {dataset: demo, references: x}}",
            "apply to generated text; add generate: true",
        ),
        ("{model: demo, edit: {method: rome}}", "has no dataset to edit"),
        (
            "{model: demo, edit: {dataset: demo, batch_size: 2}, eval: {}}",
            "do not yield one edited model",
        ),
        ("{model: demo, edit: {dataset: demo, method: mend}}", "is not a known method"),
        ("just words", "is not a recipe: it contains 'just words'"),
        ("[1, 2]", "is not a recipe"),
        ("", "the recipe is empty"),
        ("# nothing but a comment", "the recipe is empty"),
        ("model: demo", "is not valid:\n  there are no stages; add edit"),
        ("{model: 3, edit: x, eval: 4}", "eval: must be a list (got 4)"),
        ("model: demo\nmodel: other", "line 2 is not valid YAML for a recipe: 'model' occurs"),
        ("model: &a demo\nedit: *a", "anchors and aliases are not supported"),
        ("model: !!python/name:os.system x", "could not determine a constructor"),
        ("model: [unclosed", "line 1 is not valid YAML"),
        ("{[1]: 2}", "is not valid YAML for a recipe"),
        ("[" * 3000, "is not valid YAML for a recipe"),
        ("model: \x00", "is not valid YAML for a recipe"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ErrataError) as caught:
        read_recipe(written(tmp_path, text))
    assert told in caught.value.message


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ErrataError, match="cannot read the recipe"):
            read_recipe(path)
    (tmp_path / "latin.yaml").write_bytes(b"model: d\xe9mo")
    with pytest.raises(ErrataError, match="UTF-8"):
        read_recipe(tmp_path / "latin.yaml")


def test_changes_go_on_top(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    changes = (
        "edit.method=rome",
        "edit.settings.search.steps=7",
        "model.dtype=float32",
        "eval.limit=3",
        "edit.settings.blocks=[2]",
    )
    found = read_recipe(path, changes)
    assert found.edit is not None
    assert (found.edit.method, found.edit.limit) == ("rome", 4)
    assert found.edit.settings == {"search": {"steps": 7}, "blocks": [2]}
    assert (found.model.name, found.model.dtype) == ("demo", "float32")
    assert found.eval[0].limit == 3
    listed = written(tmp_path, PLAIN.replace("{generate: true}", "[{}, {generate: true}]"))
    assert read_recipe(listed, ["eval.1.limit=2"]).eval[1].limit == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("edit.limit", "cannot parse the change"),
        ("=4", "cannot parse the change"),
        ("edit..limit=4", "cannot parse the change"),
        ("edit.limit.x=4", "which has no fields"),
        ("eval.2.limit=4", "is a list of length 1, and '2' is not an index into it"),
        ("eval.limit=4", "count from 0"),
        ("edit.limit=[", "is not valid YAML"),
        ("edit.limt=4", "edit.limt: is not known here"),
    ],
)
def test_changes_that_cannot_be_made(change: str, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN.replace("{generate: true}", "[{generate: true}]"))
    with pytest.raises(ErrataError) as caught:
        read_recipe(path, [change])
    assert told in str(caught.value)


def test_all_changes_that_are_wrong_are_told_at_once(tmp_path: Path) -> None:
    changes = ["x", "edit.limit.y=4", "edit.limt=4", "edit.method=rome", "edit.seed=some", "z"]
    with pytest.raises(ErrataError) as caught:
        read_recipe(written(tmp_path, PLAIN), changes)
    for told in (
        "cannot parse the change 'x'",
        "cannot parse the change 'z'",
        "cannot set edit.limit.y",
        "edit.limt: is not known here",
        "edit.seed: Input should be a valid integer",
    ):
        assert told in caught.value.message
    assert len(caught.value.hints) == len(set(caught.value.hints))


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_may_stand_in_a_recipe(name: str) -> None:
    settings = METHODS[name]().model_dump(mode="json")
    found = recipe_of({"model": "x", "edit": {"dataset": "demo", "method": name,
                                              "settings": settings}})  # fmt: skip
    assert METHODS[name].of(found.edit.settings) == METHODS[name]() if found.edit else False


def test_help_names_everything_that_a_recipe_may_hold() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['errata', 'run', '--help']\n"
        "from errata.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = set(Recipe.model_fields) - {"model"}
    for field in Recipe.model_fields.values():
        kind = field.annotation
        for part in (kind, *getattr(kind, "__args__", ())):
            names |= set(getattr(part, "model_fields", {}))
    missing = [name for name in sorted(names) if name not in done.stdout]
    assert not missing


@pytest.mark.parametrize("flags", [("--seeds", ","), ("--methods", ","), ("--set", "epochs=[1"),
                                   ("--set", "lora=3", "--set", "lora.rank=2"), ("--set", "lora=3"),
                                   ("--set", "memit=3"), ("--set", "a.=3")])  # fmt: skip
def test_a_matrix_that_cannot_be_read_is_refused_before_the_model_is_loaded(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnModel, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ErrataError):
        CliRunner().invoke(app, ["survival", "demo", *flags], catch_exceptions=False)


def test_small_numbers_in_changes_are_numbers(tmp_path: Path) -> None:
    raw: dict[str, Any] = {}
    for change in ("a.b=1e-4", "c=-2.5E3", "d=.5e1", "e=true", "f=one", "g=[1, 2]"):
        change_value(raw, change)
    numbers = {"a": {"b": 1e-4}, "c": -2500.0, "d": 5.0}
    assert raw == {**numbers, "e": True, "f": "one", "g": [1, 2]}


def test_recipes_take_every_dtype_that_models_are_loaded_in() -> None:
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        raw = {"model": {"name": "demo", "dtype": name}, "eval": {"dataset": "demo"}}
        assert recipe_of(raw).model.dtype == name
