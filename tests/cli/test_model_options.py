"""Verbs that act on a model share one set of options, in one order and with one help text."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import typer

from errata.cli.main import app
from errata.cli.model_options import FLAGS, OnModel, on_model

VERBS = {
    command.name or getattr(command.callback, "__name__", ""): inspect.signature(
        command.callback, eval_str=True
    ).parameters
    for command in app.registered_commands
    if command.callback is not None
}
ON_MODEL = {verb: options for verb, options in VERBS.items() if "model" in options}
TITLES = {
    "edit": "Settings of the method",
    "sweep-blocks": "Settings of the method",
    "calibrate": "Settings of the method",
    "trace": "Settings of the trace",
    "tune": "Settings of the tuning",
}
"""The groups of flags that come from settings."""


def option_of(parameter: inspect.Parameter) -> Any:
    return parameter.annotation.__metadata__[0]


@pytest.mark.parametrize("verb", ON_MODEL)
def test_shared_options_are_the_same_everywhere(verb: str) -> None:
    options = ON_MODEL[verb]
    shared = [name for name in options if name in FLAGS]
    if verb == "eval":  # it saves a run only if it is asked to, so the option has no default
        shared.remove("results")
    assert next(iter(options)) == "model" and "json" in shared
    for name in shared:
        annotation, default = FLAGS[name]
        assert options[name].annotation == annotation, name
        assert options[name].default == default, name
    assert shared == [name for name in FLAGS if name in shared], "in one order"


def test_a_verb_receives_the_shared_options_as_one() -> None:
    received: list[Any] = []

    @on_model("patch", "results", "allow_base")
    def measure(on: OnModel, extra: int = 3, *, given: dict[str, Any]) -> None:
        """Keep the docstring."""
        received.extend([on, extra, given])

    names = ["model", "extra", "adapter", "adapter_kind", "dtype", "device", "json", "given"]
    assert list(inspect.signature(measure).parameters) == names
    assert measure.__doc__ == "Keep the docstring."
    with_own: Any = measure
    values = {"adapter_kind": None, "dtype": "auto", "device": None}
    with_own(model="m", adapter="a", json=True, extra=4, given={}, **values)
    assert received == [OnModel("m", adapter="a", json=True), 4, {}]
    assert received[0].named == "m --adapter a"


def test_settings_have_the_title_of_their_verb() -> None:
    found = {}
    for verb, options in VERBS.items():
        made = [
            option_of(each) for each in options.values() if hasattr(each.annotation, "__metadata__")
        ]
        panels = {
            each.rich_help_panel for each in made if isinstance(each, typer.models.OptionInfo)
        }
        if titles := panels - {None}:
            (found[verb],) = titles
    assert found == TITLES
