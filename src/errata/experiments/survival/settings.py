"""Settings of a survival matrix: methods × numbers of edits × tunings × seeds. No torch here.

A tuning is written as its method (`lora`, `dora` or `full`), its blocks (`@edited`, `@others`,
`@3.4.5`; default: all), and guards of the edits (`+penalty`, `+project`, `+reapply`).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Self

from pydantic import Field, field_validator

from errata.core.errors import ErrataError
from errata.core.settings import Settings
from errata.methods import METHODS
from errata.methods.presets import check_settings
from errata.tuning.settings import TuneSettings, resolve_tuning

SHORT = {"edited-only": "lora@edited", "all-but-edited": "lora@others"}
PENALTY = 30.0
"""Default weight of `+penalty`."""
FOR_DEMO: dict[str, Any] = {
    "dataset": "demo",
    "data": "demo-new",
    "hold_out": 128,
    "text": "demo",
    "preset": "demo",
    "corpus": "demo",
}
"""Defaults for the embedded model."""
TUNING_METHODS = ("lora", "dora", "full")
GUARDS = ("penalty", "project", "reapply")
_TUNING = re.compile(r"(lora|dora|full)(?:@(edited|others|\d+(?:\.\d+)*))?((?:\+[a-z]+)*)")


def defaults_for(model: Any) -> dict[str, Any]:
    """Return the defaults of a matrix for a model, given by name or as in a recipe."""
    choice = model if isinstance(model, dict) else {"name": model}
    elsewhere = str(choice.get("path") or "").strip()
    return FOR_DEMO if choice.get("name") == "demo" and not elsewhere else {}


class Tuning(NamedTuple):
    """One kind of tuning."""

    method: str
    blocks: str
    """As in `TuneSettings`: all, edited, others, or a list."""
    guards: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Tuning:
        """Read a tuning; raises `ErrataError` if it is not valid."""
        found = _TUNING.fullmatch(SHORT.get(text.strip().lower(), text.strip().lower()))
        guards = tuple(sorted(filter(None, found[3].split("+")))) if found else ()
        if found is None or not set(guards) <= set(GUARDS) or len(set(guards)) < len(guards):
            raise ErrataError(
                f"unknown tuning {text!r}",
                "write lora, dora or full, then @edited, @others or @3.4.5, then any of "
                + ", ".join(f"+{guard}" for guard in GUARDS),
            )
        return cls(found[1], (found[2] or "all").replace(".", ","), guards)

    @property
    def name(self) -> str:
        """The tuning as text that `parse` reads."""
        where = "" if self.blocks == "all" else "@" + self.blocks.replace(",", ".")
        return self.method + where + "".join(f"+{guard}" for guard in self.guards)


class Matrix(Settings):
    """Edits, tunings, and the data on which models are scored before and after."""

    methods: tuple[str, ...] = ("memit",)
    """Editing methods."""
    edits: tuple[int, ...] = (100,)
    """Numbers of edits, each in one batch."""
    tunings: tuple[str, ...] = ("lora", "dora", "full")
    """Tunings: lora, dora or full, with @blocks and +guards."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the tunings."""
    dataset: str = "demo"
    """Cases to edit: a dataset's name or a file."""
    controls: int = Field(100, ge=0)
    """Number of control cases, taken after the edited ones: facts that are never edited."""
    data: str
    """Rows to tune on: .json, .jsonl or hf:DATASET."""
    hold_out: int = Field(0, ge=0)
    """Number of rows, the last ones, that are held out from tuning and scored as a task."""
    tasks: tuple[str, ...] = ()
    """Benchmark tasks (see `errata tasks`)."""
    task_data: str = "dataset"
    """Folder that contains <task>/test.json."""
    task_limit: int | None = Field(None, ge=1)
    """Maximum number of rows per task."""
    max_new_tokens: int = Field(32, ge=1)
    """Maximum length of an answer to a task, in tokens."""
    text: str | None = None
    """Text for perplexity: `wikitext2` or a file (default: perplexity is not measured)."""
    preset: str | None = None
    """Preset of the tunings (see `errata tune`)."""
    tune: dict[str, Any] = Field(default_factory=dict)
    """Settings of all tunings, or of one method under its name; they override the preset."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of the editing methods, by method; they override the model's presets."""
    corpus: str | None = None
    """Text for the second moment (see `errata stats`)."""

    @field_validator("methods")
    @classmethod
    def _methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        named = tuple(method.strip().lower() for method in methods)
        if unknown := [method for method in named if method not in METHODS]:
            raise ValueError(f"unknown: {', '.join(unknown)}; known methods: {', '.join(METHODS)}")
        if not named:
            raise ValueError("give at least one method")
        return named

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("give at least one seed")
        return seeds

    @field_validator("tune")
    @classmethod
    def _tune(cls, tune: dict[str, Any]) -> dict[str, Any]:
        for name in TUNING_METHODS:
            if name in tune and not isinstance(tune[name], dict):
                raise ValueError(
                    f"{name} is {tune[name]!r:.40}, but must map names of settings to values"
                )
        return tune

    @field_validator("edits")
    @classmethod
    def _edits(cls, edits: tuple[int, ...]) -> tuple[int, ...]:
        if not edits or min(edits) < 1 or len(set(edits)) < len(edits):
            raise ValueError("give at least one number, all positive and different")
        return tuple(sorted(edits))

    @field_validator("tunings")
    @classmethod
    def _tunings(cls, tunings: tuple[str, ...]) -> tuple[str, ...]:
        try:
            names = tuple(Tuning.parse(text).name for text in tunings)
        except ErrataError as error:
            raise ValueError(f"{error.message}; {error.hints[0]}") from None
        if not names or len(set(names)) < len(names):
            raise ValueError("give at least one tuning, and none twice")
        return names

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """Build, and check the settings of every tuning and editing method as well."""
        matrix = cls.of(values)
        for name in matrix.tunings:
            matrix.settings_of(Tuning.parse(name), matrix.seeds[0])
        for name in matrix.methods:
            check_settings(METHODS[name], matrix.settings.get(name, {}))
        return matrix

    def settings_of(self, tuning: Tuning, seed: int) -> TuneSettings:
        """Return all settings of a tuning."""
        given = {k: v for k, v in self.tune.items() if not isinstance(v, dict)}
        given |= self.tune.get(tuning.method, {})
        weight = given.pop("shift_penalty", PENALTY)
        given |= {
            "method": tuning.method,
            "blocks": tuning.blocks,
            "seed": seed,
            "shift_penalty": weight if "penalty" in tuning.guards else 0.0,
            "project": "project" in tuning.guards,
            "reapply": "reapply" in tuning.guards,
        }
        return resolve_tuning(given, self.preset)
