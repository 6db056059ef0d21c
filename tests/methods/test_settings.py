"""Settings: every field is read somewhere, every wrong one is named, presets fit their methods."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import Field, ValidationError, model_validator

import errata
from errata.cli.options import fields_of, given_settings
from errata.core.errors import ErrataError
from errata.core.settings import Settings, describe
from errata.methods import METHODS, AlphaEdit, ClosedForm, Memit, Rome, method_named
from errata.methods.closed_form.driver import MAX_STEPS
from errata.methods.closed_form.rewrite import rewrite_of
from errata.methods.closed_form.settings import Contexts, Search
from errata.methods.presets import (
    Preset,
    architectures,
    presets,
    published,
    resolve_settings,
)
from tiny import FACTS, tiny_tokenizer

SOURCE = Path(errata.__file__).parent
EVERY = [(name, path) for name, method in METHODS.items() for path, _ in fields_of(method)]


@cache
def names_read() -> frozenset[str]:
    """Return every attribute that some line of the package reads."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return frozenset(found)


def nested(settings: type[Settings]) -> Iterator[type[Settings]]:
    yield settings
    for field in settings.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from nested(field.annotation)


@pytest.mark.parametrize(
    ("method_name", "path"), EVERY, ids=lambda v: v if isinstance(v, str) else v[-1]
)
def test_every_setting_is_read_and_told_about(method_name: str, path: tuple[str, ...]) -> None:
    assert path[-1] in names_read(), f"nobody reads {'.'.join(path)} of {method_name}"
    field = dict(fields_of(METHODS[method_name]))[path]
    assert field.description, f"{'.'.join(path)} has no help"


def test_a_setting_nobody_reads_would_be_seen() -> None:
    assert "moment_wait" not in names_read()
    assert "moment_weight" in names_read()


@pytest.mark.parametrize("method_name", METHODS)
def test_no_two_settings_of_a_method_share_a_flag(method_name: str) -> None:
    flags = [path[-1] for path, _ in fields_of(METHODS[method_name])]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("method_name", METHODS)
def test_settings_survive_a_trip_through_json(method_name: str) -> None:
    blocks = (3,) if method_name == "rome" else (3, 1)
    method = METHODS[method_name](blocks=blocks, contexts=Contexts(prefixes=("A. ",)))
    assert type(method).of(method.model_dump(mode="json")) == method
    assert method.blocks == tuple(sorted(blocks))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"stepps": 3}, "stepps: is not known here"),
        ({"search": {"steps": 0}}, r"search.steps: .*greater than or equal to 1 \(got 0\)"),
        ({"search": {"clamp": "wide"}}, r"search.clamp: .*\(got 'wide'\)"),
        ({"blocks": ()}, "blocks: name at least one block"),
        ({"blocks": (1, 1)}, "blocks: name at least one block, and none twice"),
        ({"position": "middle"}, "position: Input should be 'subject_first'"),
        ({"contexts": {"seeds": 1}}, "contexts.seeds: is not known here"),
    ],
)
@pytest.mark.parametrize("method_name", METHODS)
def test_every_wrong_setting_is_named(method_name: str, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ErrataError, match=named) as caught:
        METHODS[method_name].of(values)
    assert "blocks" in caught.value.hints[0]


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ErrataError) as caught:
        Memit.of({"moment_weight": -1, "search": {"steps": 0}, "odd": 1})
    assert [name in caught.value.message for name in ("moment_weight", "search.steps", "odd")] == [
        True
    ] * 3


def test_an_essence_prompt_without_a_slot_is_refused_in_words() -> None:
    with pytest.raises(ErrataError, match="essence_prompt"):
        rewrite_of(
            tiny_tokenizer(),
            FACTS[0],
            (),
            where="subject_last",
            essence_prompt=Search.of({"essence_prompt": "It is a"}).essence_prompt,
            mean_by_type=True,
        )


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    assert method_named("MEMIT") is Memit
    with pytest.raises(ErrataError, match="there is no method 'mend'") as caught:
        method_named("mend")
    assert caught.value.hints == (f"known methods: {', '.join(METHODS)}",)


def test_rome_edits_one_block() -> None:
    assert Rome(blocks=(5,)).edited_blocks == (5,)
    with pytest.raises(ErrataError, match="blocks: ROME writes one block; name one"):
        Rome.of({"blocks": [2, 5]})
    assert Memit(blocks=(5, 2)).edited_blocks == (2, 5)
    with pytest.raises(ErrataError, match="which blocks to edit"):
        _ = Memit().edited_blocks


def known_preset(model: str, method: str) -> Preset | None:
    return presets().get(model, {}).get(method)


SHIPPED = [(model, name) for model, methods in presets().items() for name in methods]


@pytest.mark.parametrize(("model", "name"), SHIPPED)
def test_every_preset_fits_its_method(model: str, name: str) -> None:
    preset = presets()[model][name]
    settled, source, notes = resolve_settings(METHODS[name], model, 1000, {}, preset)
    assert settled == METHODS[name].of(preset.settings)
    assert (source, notes[: len(preset.notes)]) == (preset.source, preset.notes)
    assert source
    told = notes[len(preset.notes) :]
    assert (preset.defect is None and not told) or (preset.defect and preset.defect in told[0])
    assert (
        settled.edited_blocks
        == tuple(sorted(preset.settings["blocks"]))[-len(settled.edited_blocks) :]
    )
    for path in (f"somebody/{model}", f"a/folder/{model}/", model.upper()):
        assert published(METHODS[name], path, architectures()[model]) == preset


def test_presets_tuned_with_a_defect_in_place_say_so() -> None:
    faulty = {(m, n) for m, n in SHIPPED if presets()[m][n].defect is not None}
    assert faulty == {("Llama-2-7b-hf", name) for name in METHODS}
    assert "BOS" in (presets()["Llama-2-7b-hf"]["rome"].defect or "")


@pytest.mark.parametrize("method_name", METHODS)
def test_a_model_without_preset_gets_a_guess_and_is_told(method_name: str) -> None:
    method = METHODS[method_name]
    settled, source, notes = resolve_settings(method, "me/unheard-of", 32, {})
    first, last = (int(share * 32) for share in method.depth)
    assert settled.edited_blocks == tuple(range(first, last + 1))
    assert settled.search == method().search.with_values(max_steps=MAX_STEPS)
    assert source == "defaults"
    assert len(notes) == 1
    assert "no preset for unheard-of" in notes[0]
    assert "guess" in notes[0]


@pytest.mark.parametrize("count", [1, 2, 3, 80])
@pytest.mark.parametrize("method_name", METHODS)
def test_a_guess_lies_within_the_model(method_name: str, count: int) -> None:
    settled, _, _ = resolve_settings(METHODS[method_name], "unheard-of", count, {})
    assert all(0 <= block < count for block in settled.edited_blocks)


def test_blocks_that_were_given_are_no_guess() -> None:
    settled, _, notes = resolve_settings(Memit, "unheard-of", 32, {"blocks": (7, 5)})
    assert settled.blocks == (5, 7)
    assert notes == ()


@pytest.mark.parametrize("model", ["unheard-of", "gpt2-xl"])
@pytest.mark.parametrize("method_name", METHODS)
def test_a_block_that_the_model_lacks_is_refused(method_name: str, model: str) -> None:
    with pytest.raises(ErrataError, match="there is no block 12: the model has blocks 0 to 11"):
        resolve_settings(
            METHODS[method_name], model, 12, {"blocks": (12,)}, known_preset(model, method_name)
        )


@pytest.mark.parametrize("method", [Memit, AlphaEdit, Rome])
@pytest.mark.parametrize("model", ["unheard-of", "gpt2-xl"])
def test_one_given_search_setting_leaves_the_methods_others(
    method: type[ClosedForm], model: str
) -> None:
    """`--steps 7` must not put MEMIT's clamp back to another method's default."""
    preset = known_preset(model, method.name)
    usual, _, _ = resolve_settings(method, model, 48, {}, preset)
    given, _, _ = resolve_settings(method, model, 48, {"search": {"learning_rate": 0.25}}, preset)
    assert given.search == usual.search.with_values(learning_rate=0.25)
    assert given.with_values(search=usual.search.model_dump()) == usual


def test_flags_become_nested_settings() -> None:
    flags = {"blocks": "4,5", "steps": "7", "prefix_lengths": "2,3", "history": True}
    preset = known_preset("gpt2-xl", "memit")
    settled, _, _ = resolve_settings(Memit, "gpt2-xl", 48, given_settings(Memit, flags), preset)
    assert (settled.blocks, settled.search.steps, settled.history) == ((4, 5), 7, True)
    assert settled.contexts.prefix_lengths == (2, 3)


def test_a_flag_that_the_method_lacks_is_refused() -> None:
    with pytest.raises(ErrataError, match="Rome has no setting --ridge") as caught:
        given_settings(Rome, {"ridge": "3"})
    assert "--second-moment" in caught.value.hints[0]


def test_settings_cannot_be_changed() -> None:
    for settings in nested(Memit):
        assert settings.model_config["frozen"]
        assert settings.model_config["extra"] == "forbid"


class _Part(Settings):
    name: str = "x"


class _Whole(Settings):
    part: _Part = _Part()
    parts: tuple[_Part, ...] = ()
    table: dict[str, int] = Field(default_factory=dict)
    texts: Sequence[str] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.part.name == "nothing":
            raise ValueError("there is nothing to do")
        return self


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"part": 3}, "  part: must be a mapping (got 3)"),
        ({"parts": "ab"}, "  parts: must be a list (got 'ab')"),
        ({"parts": ["a"]}, "  parts.0: must be a mapping (got 'a')"),
        ({"table": [1]}, "  table: must be a mapping (got [1])"),
        ({"texts": "ab"}, "  texts: must be a list (got 'ab')"),
        ({"texts": 3}, "  texts: must be a list (got 3)"),
        ({"part": {"name": "nothing"}}, "  there is nothing to do"),
        (3, "  must be a mapping (got 3)"),
        (json.JSONDecodeError("Expecting value", "x", 0), "  is not JSON: Expecting value: line 1"),
    ],
)
def test_what_is_wrong_is_said_without_the_words_of_a_library(value: Any, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _Whole.model_validate(value)
    assert describe(caught.value).startswith(told)
    assert "\n" not in describe(caught.value)


def test_a_part_that_is_wrong_as_a_whole_is_named_by_its_path() -> None:
    with pytest.raises(ValidationError) as caught:
        _Whole.model_validate({"part": {"name": "nothing"}})
    assert describe(caught.value, "edit.settings.") == "  edit.settings: there is nothing to do"
