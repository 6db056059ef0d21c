"""The schema of recipes: a complete experiment as one YAML file, validated before it is run.

    model: demo
    edit: {dataset: demo, limit: 20, method: memit, settings: {moment_weight: 10}}
    tune: {data: demo-new, preset: demo, settings: {method: lora}}
    eval: {dataset: demo-zsre, generate: true}

Stages run in the order edit, tune, eval, survival, whatever their order in the file. A recipe is
plain YAML: tags, anchors and duplicate keys are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from errata.core.errors import ErrataError
from errata.core.files import reason
from errata.core.settings import LARGEST_SEED, Settings, describe, is_none, is_true
from errata.data.datasets import is_known
from errata.experiments.edit_plan import EditPlan, plan_for
from errata.experiments.recipe.yaml_text import change_value, plain_yaml
from errata.experiments.survival.settings import Matrix, defaults_for
from errata.methods import METHODS, method_named
from errata.methods.published_hparams import read_hparams
from errata.tuning.settings import TuneStage


class ModelChoice(Settings):
    """The model of a recipe: the arguments of `errata.load`."""

    name: str
    """A Hub name, a folder, or `demo`."""
    path: str | None = None
    """A checkpoint to load instead of the named model; blank for none."""
    adapter: str | None = None
    """A PEFT LoRA or DoRA folder to merge into the model; blank for none."""
    adapter_kind: Literal["lora", "dora"] | None = None
    """The kind that the adapter must have."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights; auto: as stored."""
    device: str | None = None
    """cpu, cuda, cuda:1 … (default: the first GPU, or the CPU)."""
    patches: tuple[str, ...] = ()
    """Patches to apply at the start, in order."""
    allow_base: bool = False
    """Apply patches even if they were made for another model."""


class CaseChoice(Settings):
    """A dataset and a selection of its cases."""

    dataset: str | None = None
    """A dataset's name (`errata ls datasets`) or a file of cases or requests."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of cases."""
    offset: int = Field(0, ge=0)
    """Number of cases to skip."""
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    """Shuffle the cases with this seed first."""
    skip_invalid: bool = False
    """Skip invalid records and report how many."""

    @field_validator("dataset")
    @classmethod
    def _known(cls, dataset: str | None) -> str | None:
        if dataset is not None and not is_known(dataset):
            raise ValueError("is neither a known dataset nor a file; see `errata ls datasets`")
        return dataset


class EditStage(CaseChoice):
    """Edit facts in batches, and score them before and after."""

    method: str = "memit"
    """The editing method; see `errata ls methods`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method; they override the model's preset."""
    hparams: str | None = None
    """A published hyperparameter file, with the references' JSON keys; `settings` override it."""
    batch_size: int | None = Field(None, ge=1)
    """Requests per batch (default: all in one batch; ROME edits each case alone, unless tune or
    eval need one edited model)."""
    sequential: bool = False
    """Apply each batch on top of the previous ones, not on the unedited model."""
    corpus: str | None = None
    """Text for the second moment (see `errata stats`)."""
    tokens: int | None = Field(None, ge=1)
    """Number of tokens of the corpus to use."""

    @field_validator("method")
    @classmethod
    def _method(cls, method: str) -> str:
        if method.lower() not in METHODS:
            raise ValueError(f"is not a known method; known: {', '.join(METHODS)}")
        return method.lower()

    @model_validator(mode="after")
    def _has_cases(self) -> Self:
        if self.dataset is None:
            raise ValueError("has no dataset to edit; give a name or a file: dataset: NAME")
        return self


class EvalStage(CaseChoice):
    """Score the model without and with its patches, by default on the edited cases."""

    generate: bool = False
    """Also generate answers, and texts about the subjects."""
    max_new_tokens: int = Field(32, ge=1)
    """Maximum length of a generated answer, in tokens."""
    references: str | None = None
    """Reference texts for CounterFact: a file, or `published`."""
    template: Literal["none", "chat"] | None = Field(None, exclude_if=is_none)
    """Ask prompts as plain text (the default), or in the tokenizer's chat template."""
    system: str | None = Field(None, exclude_if=is_none)
    """System message of the chat (default: the template's own)."""
    controls: bool = Field(True, exclude_if=is_true)
    """Also ask the unedited model with the facts in the prompt."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.generate and (self.references is not None or self.max_new_tokens != 32):
            raise ValueError(
                "references and max_new_tokens apply to generated text; add generate: true"
            )
        if self.system is not None and self.template != "chat":
            raise ValueError("a system message needs template: chat")
        return self


Stage = EditStage | EvalStage | TuneStage | Matrix


class Recipe(Settings):
    """A model and the stages to run on it, in order."""

    model: ModelChoice
    """The model: a name, or a mapping."""
    edit: EditStage | None = None
    """The edits."""
    tune: TuneStage | None = None
    """Fine-tuning of the edited model."""
    eval: tuple[EvalStage, ...] = ()
    """Evaluations at the end: one mapping, or a list of them."""
    survival: Matrix | None = None
    """A matrix of edits and tunings, which starts from `model` and ignores the stages before."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("model"), str):
            raw = {**raw, "model": {"name": raw["model"]}}
        if isinstance(raw, dict) and isinstance(raw.get("survival"), dict):
            raw = {**raw, "survival": defaults_for(raw.get("model")) | raw["survival"]}
        return raw

    @field_validator("eval", mode="before")
    @classmethod
    def _one_or_many(cls, stages: Any) -> Any:
        return [stages] if isinstance(stages, dict) else stages

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not any((self.edit, self.tune, self.eval, self.survival)):
            raise ValueError("there are no stages; add edit, tune, eval or survival")
        if self.edit is None and any(stage.dataset is None for stage in self.eval):
            raise ValueError("eval: without an edit stage, a dataset is required")
        apart = self.edit and self.edit.batch_size is not None and not self.edit.sequential
        if apart and (self.eval or self.tune):
            raise ValueError(
                "tune, eval: batches that each start from the unedited model do not yield one "
                "edited model; use edit.sequential: true, or omit edit.batch_size"
            )
        return self

    def plan(self, stage: EditStage) -> EditPlan:
        """Return how the edit stage's requests are cut into batches."""
        return plan_for(
            METHODS[stage.method],
            stage.batch_size,
            stage.sequential,
            dataset=True,
            one_model=bool(self.tune or self.eval),
        )

    @property
    def edits(self) -> bool:
        """Whether a stage edits the model."""
        return self.edit is not None or self.survival is not None

    def stages(self) -> Iterator[tuple[str, Stage]]:
        """Yield the stages in order, each with its name."""
        if self.edit is not None:
            yield "edit", self.edit
        if self.tune is not None:
            yield "tune", self.tune
        for number, stage in enumerate(self.eval):
            yield f"eval_{number}", stage
        if self.survival is not None:
            yield "survival", self.survival


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply changes like `edit.limit=10`.

    Raises one `ErrataError` that lists all problems.
    """
    try:
        raw = plain_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, ValueError) as error:
        raise ErrataError(
            f"cannot read the recipe {path}: {reason(error)}",
            "check the path and that the file is UTF-8",
        ) from None
    if raw is None:
        raise ErrataError(f"{path}: the recipe is empty", "a recipe starts with `model: NAME`")
    if not isinstance(raw, dict):
        raise ErrataError(
            f"{path} is not a recipe: it contains {raw!r:.40}",
            "a recipe starts with `model: NAME`",
        )
    refused = []
    for change in changes:
        try:
            change_value(raw, change)
        except ErrataError as error:
            refused.append(error)
    return recipe_of(raw, str(path), refused)


def recipe_of(
    raw: dict[str, Any], name: str = "the recipe", refused: Sequence[ErrataError] = ()
) -> Recipe:
    """Build a recipe from its content; raises one `ErrataError` that lists all problems.

    `refused` are the errors of changes that could not be applied.
    """
    problems = _method_problems(raw.get("edit"))
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems = [describe(error), *problems]
    if len(refused) == 1 and not problems:
        raise refused[0]
    problems += [f"  {error.message}" for error in refused]
    if problems:
        raise ErrataError(
            f"{name} is not valid:\n" + "\n".join(problems),
            *dict.fromkeys(hint for error in refused for hint in error.hints),
            "`errata run --help` lists the keys of a recipe",
        )
    return recipe


def _method_problems(edit: Any) -> list[str]:
    """Return problems with the settings of the edit stage's method, which the schema omits."""
    if not isinstance(edit, dict) or str(edit.get("method", "memit")).lower() not in METHODS:
        return []
    method, problems = method_named(str(edit.get("method", "memit"))), []
    if isinstance(edit.get("settings"), dict):
        try:
            method.model_validate(edit["settings"])
        except ValidationError as error:
            problems.append(describe(error, "edit.settings."))
            problems += [f"  edit.settings: {hint}" for hint in method.nested_hints(error)]
    if isinstance(edit.get("hparams"), str):
        try:
            read_hparams(Path(edit["hparams"]), method)
        except ErrataError as error:
            problems.append(f"  edit.hparams: {error.message}")
    return problems
