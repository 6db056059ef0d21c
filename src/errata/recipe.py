"""Recipes: a whole experiment as one YAML file, checked before anything is done.

    model: demo
    edit: {dataset: demo, limit: 20, method: memit, settings: {moment_weight: 10}}
    tune: {data: demo-new, preset: demo, settings: {method: lora}}
    eval: {dataset: demo-zsre, generate: true}

Stages run in the order edit, tune, eval, survival, whatever theirs in the file; `stages` runs
them. A recipe is plain YAML: tags, anchors and keys that occur twice are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from errata.data import is_known
from errata.errors import ErrataError
from errata.files import reason
from errata.hparams import read_hparams
from errata.methods import METHODS, method_named
from errata.settings import LARGEST_SEED, Settings, describe
from errata.survival.settings import Matrix
from errata.tune.settings import TuneStage

DEEPEST = 50
"""Levels that a recipe may have; it needs five."""


class ModelChoice(Settings):
    """The model that a recipe is about, as `errata.load` takes it."""

    name: str
    """A Hub name, a folder, or `demo`."""
    path: str | None = None
    """A checkpoint that is loaded in the name's place; blank means the name."""
    adapter: str | None = None
    """A PEFT LoRA or DoRA folder to merge into the model; blank for none."""
    adapter_kind: Literal["lora", "dora"] | None = None
    """What the adapter has to be."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Load in this dtype; auto: as stored."""
    device: str | None = None
    """cpu, cuda, cuda:1 …; the first GPU when there is one."""
    patches: tuple[str, ...] = ()
    """Patches to put on first, in order."""
    allow_base: bool = False
    """Apply patches to another base all the same."""


class CaseChoice(Settings):
    """Which cases of which dataset."""

    dataset: str | None = None
    """A dataset's name (`errata ls datasets`) or a file of cases or requests."""
    limit: int | None = Field(None, ge=1)
    """Take so many cases."""
    offset: int = Field(0, ge=0)
    """Leave out the first cases."""
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    """Shuffle the cases first."""
    skip_invalid: bool = False
    """Leave out broken records, and count them."""

    @field_validator("dataset")
    @classmethod
    def _known(cls, dataset: str | None) -> str | None:
        if dataset is not None and not is_known(dataset):
            raise ValueError("is no known dataset and no file; see `errata ls datasets`")
        return dataset


class EditStage(CaseChoice):
    """Edit facts, in batches, and score what that did."""

    method: str = "memit"
    """The editing method; see `errata ls methods`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method, on top of the model's preset."""
    hparams: str | None = None
    """A published hyperparameter file, with the references' JSON keys; `settings` go before it."""
    batch_size: int | None = Field(None, ge=1)
    """Requests per batch; all at once when not given."""
    sequential: bool = False
    """Put batches on top of each other, not each on the unedited model."""
    corpus: str | None = None
    """Text for the second moment (see `errata stats`)."""
    tokens: int | None = Field(None, ge=1)
    """Tokens of it to use."""

    @field_validator("method")
    @classmethod
    def _method(cls, method: str) -> str:
        if method.lower() not in METHODS:
            raise ValueError(f"is no known method: {', '.join(METHODS)}")
        return method.lower()

    @model_validator(mode="after")
    def _has_cases(self) -> Self:
        if self.dataset is None:
            raise ValueError("says not what to edit; name a dataset or a file: dataset: NAME")
        return self


class EvalStage(CaseChoice):
    """Ask the model, without and with its patches; without a dataset, about what was edited."""

    generate: bool = False
    """Also let the model write: answers, and texts about the subjects."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest written answer, in tokens."""
    references: str | None = None
    """Reference texts for CounterFact: a file, or `published`."""


Stage = EditStage | EvalStage | TuneStage | Matrix


class Recipe(Settings):
    """A model and what is done with it, in order."""

    model: ModelChoice
    """The model; a plain name will do."""
    edit: EditStage | None = None
    """The edits."""
    tune: TuneStage | None = None
    """How it is fine-tuned then, edits included."""
    eval: tuple[EvalStage, ...] = ()
    """What is asked afterwards: one mapping, or a list of them."""
    survival: Matrix | None = None
    """A matrix of edits and tunings of the model as it is named, whatever was edited above."""

    @field_validator("model", mode="before")
    @classmethod
    def _plain_name(cls, model: Any) -> Any:
        return {"name": model} if isinstance(model, str) else model

    @field_validator("eval", mode="before")
    @classmethod
    def _one_or_many(cls, stages: Any) -> Any:
        return [stages] if isinstance(stages, dict) else stages

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not any((self.edit, self.tune, self.eval, self.survival)):
            raise ValueError("there is nothing to do; add edit, tune, eval or survival")
        if self.edit is None and any(stage.dataset is None for stage in self.eval):
            raise ValueError("eval: nothing is edited here, so its dataset must be named")
        apart = self.edit and self.edit.batch_size is not None and not self.edit.sequential
        if apart and (self.eval or self.tune):
            raise ValueError(
                "tune, eval: batches that each start from the unedited model leave no one edited "
                "model; "
                "say edit.sequential: true, or leave edit.batch_size out"
            )
        return self

    def stages(self) -> Iterator[tuple[str, Stage]]:
        """Yield what is to be done, in order, each under a name."""
        if self.edit is not None:
            yield "edit", self.edit
        if self.tune is not None:
            yield "tune", self.tune
        for number, stage in enumerate(self.eval):
            yield f"eval_{number}", stage
        if self.survival is not None:
            yield "survival", self.survival


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with changes like `edit.limit=10` on top.

    Everything that is wrong is told in one `ErrataError`.
    """
    try:
        raw = _plain_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ErrataError(
            f"cannot read the recipe {path}: {reason(error)}",
            "check the path and that the file is UTF-8",
        ) from None
    if not isinstance(raw, dict):
        raise ErrataError(
            f"{path} is no recipe: it holds {raw!r:.40}", "a recipe begins with `model: NAME`"
        )
    for change in changes:
        _change(raw, change)
    return recipe_of(raw, str(path))


def recipe_of(raw: dict[str, Any], name: str = "the recipe") -> Recipe:
    """Check a recipe's content; everything that is wrong is told in one `ErrataError`."""
    problems = _method_problems(raw.get("edit"))
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems = [describe(error), *problems]
    if problems:
        raise ErrataError(
            f"{name} is not valid:\n" + "\n".join(problems),
            "`errata run --help` names what a recipe may hold",
        )
    return recipe


def _method_problems(edit: Any) -> list[str]:
    """What is wrong with the method's settings, which the recipe itself cannot know."""
    if not isinstance(edit, dict) or str(edit.get("method", "memit")).lower() not in METHODS:
        return []
    method, problems = method_named(str(edit.get("method", "memit"))), []
    if isinstance(edit.get("settings"), dict):
        try:
            method.model_validate(edit["settings"])
        except ValidationError as error:
            problems.append(describe(error, "edit.settings."))
            problems += [f"  edit.settings: {hint}" for hint in method.inside(error)]
    if isinstance(edit.get("hparams"), str):
        try:
            read_hparams(Path(edit["hparams"]), method)
        except ErrataError as error:
            problems.append(f"  edit.hparams: {error.message}")
    return problems


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a key that occurs twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, unless a key occurs twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} occurs twice", problem_mark=node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _plain_yaml(text: str, name: str) -> Any:
    """Read YAML without anchors, tags and double keys."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError("it is nested too deeply")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError("anchors and aliases are not used here")
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ErrataError(
            f"{name}{line} is not YAML that a recipe may hold: {reason}",
            "a recipe is plain YAML: names, numbers, lists",
        ) from None


def _change(raw: dict[str, Any], change: str) -> None:
    """Make one change `a.b=c` to a recipe; `c` is read as YAML."""
    path, sign, value = change.partition("=")
    parts = path.strip().split(".")
    if not sign or not all(parts):
        raise ErrataError(
            f"cannot read the change {change!r}", "write it like --set edit.method=rome"
        )
    place: Any = raw
    for number, part in enumerate(parts):
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ErrataError(
                    f"{'.'.join(parts[:number])} is a list of {len(place)}, and {part!r} is none "
                    "of its places",
                    f"count from 0, as in --set {'.'.join(parts[:number])}.0.limit=5",
                )
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise ErrataError(
                f"cannot set {path}: {'.'.join(parts[:number])} is {place!r:.40}, "
                "which has no parts"
            )
        if number == len(parts) - 1:
            place[key] = _plain_yaml(value, f"--set {change}")
            return
        if number == 0 and isinstance(place.get(key), str) and key == "model":
            place[key] = {"name": place[key]}
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
