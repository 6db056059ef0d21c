"""Work that edits with different settings share: the same patch as an ordinary edit.

A calibration searches targets once, stores them, and writes them with many settings. Which
settings are cheap is read off `Method.shared_settings`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.methods import METHODS, Method
from errata.methods.edit import compute_edit
from errata.methods.search_space import Dial, choice, log, nested, value_at
from laws.bench import edited_model, moments_of, over_methods, quick
from tiny import FACTS

CHEAP = {
    "rome": {"second_moment": False},
    "memit": {"moment_weight": 30.0, "blocks": (2,)},
    "alphaedit": {"ridge": 0.4, "null_space_threshold": 0.5, "blocks": (2,)},
}
"""Settings that do not change the targets."""


@over_methods
def test_every_setting_of_the_space_is_a_setting_of_the_method(method_name: str) -> None:
    method = quick(method_name)
    dials = method.search_space(moments_of("llama"))
    assert len({dial.name for dial in dials}) == len(dials) > 1
    settings = method.model_dump()
    for dial in dials:
        for end in dial.ends:
            changed = method.of(method.merged(settings, nested([(dial.name, end)])))
            assert value_at(changed.model_dump(), dial.name) == end


@over_methods
def test_targets_that_were_stored_give_the_patch_of_an_ordinary_edit(method_name: str) -> None:
    edited, moments = edited_model("llama"), moments_of("llama")
    searched = quick(method_name)
    job = searched.begin(edited, FACTS[:2]).shared()
    stored = {name: tensor.clone() for name, tensor in job.state().items()}
    assert stored
    cheap = quick(method_name, **CHEAP[method_name])
    assert cheap.shared_settings() == searched.shared_settings()
    read = searched.begin(edited, FACTS[:2]).with_state(stored).finished_by(cheap)
    shared = cheap.edit(edited, FACTS[:2], moments=moments, job=read)
    plain = compute_edit(edited, FACTS[:2], cheap, moments=moments_of("llama"))
    assert shared.digest == plain.digest
    other = compute_edit(edited, FACTS[:2], searched, moments=moments_of("llama"))
    assert other.digest != plain.digest, "the cheap settings have an effect"


@over_methods
@pytest.mark.parametrize(
    "costly", [{"search": {"steps": 3}}, {"position": "last"}, {"blocks": (1,)}]
)
def test_settings_of_the_search_are_part_of_the_shared_work(
    method_name: str, costly: dict[str, Any]
) -> None:
    method = quick(method_name)
    other = type(method).of(method.merged(method.model_dump(), costly))
    assert other.shared_settings() != method.shared_settings()


@over_methods
def test_moments_without_what_was_derived_give_the_same_patch(method_name: str) -> None:
    edited, moments = edited_model("llama"), moments_of("llama")
    method = quick(method_name)
    first = compute_edit(edited, FACTS[:2], method, moments=moments)
    for moment in moments.values():
        _ = moment.spectrum
    fresh = {block: moment.fresh() for block, moment in moments.items()}
    assert compute_edit(edited, FACTS[:2], method, moments=fresh).digest == first.digest


def test_lambda_without_scale_is_that_of_the_system() -> None:
    edited, moments, method = edited_model("llama"), moments_of("llama"), quick("memit")
    patch = compute_edit(edited, FACTS[:2], method, moments=moments)
    ratios = [
        float(0.5 * moments[block].matrix.double().trace() / update.K.double().square().sum())
        for block, update in zip((1, 2), patch.updates.values(), strict=True)
        if update.K is not None
    ]
    found = method.scale_free(patch, moments)
    assert found["moment_weight"] == pytest.approx(0.5)
    assert found["relative_weight"] == pytest.approx((ratios[0] * ratios[1]) ** 0.5)


def test_a_method_without_a_space_is_a_method() -> None:
    class Plain(Method):
        name = "plain"
        label = "Plain"

        def edit(self, *_: Any, **__: Any) -> Any:
            return None

        def costs(self, *_: Any, **__: Any) -> Any:
            return []

    plain = Plain()
    assert plain.search_space({}) == () and plain.shared_settings() == {}
    job = plain.begin(edited_model("llama"), FACTS)
    assert job.finished_by(plain) is job.with_state(job.state())


def test_dials() -> None:
    size = log("search.clamp", 0.5, 8.0)
    assert size.nearest(100) == 8.0 and size.nearest(2) == 2.0 and size.ends == (0.5, 8.0)
    steps = choice("steps", 10, 20)
    assert steps.nearest(18) == 20 and steps.nearest(10) == 10 and steps.nearest(None) == 10
    assert choice("second_moment", True, False).nearest(False) is False
    assert isinstance(size, Dial)
    assert nested([("a.b", 1), ("a.c", 2), ("d", 3)]) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert set(METHODS) <= set(CHEAP)
    assert torch.is_tensor(moments_of("llama")[0].spectrum[0])
