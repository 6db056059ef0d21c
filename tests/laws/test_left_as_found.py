"""Promises 1, 2 and 9: a model comes back as it was, also from failures, and can be trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from errata.methods import METHODS
from errata.methods.closed_form.prefixes import sample_prefixes
from errata.methods.edit import compute_edit
from errata.metrics.likelihood import likelihoods
from errata.models.families import weight_of
from errata.models.suffix_run import SuffixRun
from errata.patches.edited_model import EditedModel
from errata.statistics.measure import measure
from laws.bench import (
    apply_edit,
    edited_model,
    found,
    moments_of,
    over_methods,
    over_shapes,
    patch_of,
    quick,
    random_patch,
    rewrites_of,
    untidy,
    weights,
)
from tiny import FACTS, tiny_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compute(edited: EditedModel, model_type: str, method_name: str, **given: Any) -> None:
    compute_edit(edited, FACTS[:2], quick(method_name, **given), moments=moments_of(model_type))


@over_shapes
@over_methods
def test_a_patch_applied_for_a_while_leaves_everything_as_found(
    model_type: str, method_name: str
) -> None:
    edited, patch = edited_model(model_type), patch_of(model_type, method_name)
    untidy(edited.model)
    before = found(edited.model)
    with patch.applied(edited.model) as model:
        changed = [
            name for name, value in weights(model).items() if value != before["weights"][name]
        ]
        assert sorted(changed) == sorted(patch.updates)
    assert found(edited.model) == before
    with pytest.raises(KeyboardInterrupt), patch.applied(edited.model):
        raise KeyboardInterrupt
    assert found(edited.model) == before


@over_shapes
@over_methods
def test_computing_a_patch_leaves_everything_as_found(model_type: str, method_name: str) -> None:
    edited = edited_model(model_type)
    untidy(edited.model)
    before, sides = found(edited.model), vars(edited.tokenizer).copy()
    compute(edited, model_type, method_name, contexts={"prefix_lengths": (2,)})
    assert found(edited.model) == before
    assert vars(edited.tokenizer) == sides


@over_shapes
@over_methods
@pytest.mark.parametrize("good", [0, 1])
def test_a_failing_read_leaves_everything_as_found(
    model_type: str, method_name: str, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited, real, calls = edited_model(model_type), METHODS[method_name].read, []

    def read(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) > good:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(METHODS[method_name], "read", read)
    edited.apply(random_patch(edited, 0))
    untidy(edited.model)
    before = found(edited.model)
    with pytest.raises(KeyboardInterrupt):
        compute(edited, model_type, method_name)
    assert len(calls) == good + 1
    assert found(edited.model) == before


@over_shapes
@over_methods
def test_a_failing_search_leaves_everything_as_found(
    model_type: str, method_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited, real, calls = edited_model(model_type), SuffixRun.hidden, []

    def run(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(SuffixRun, "hidden", run)
    untidy(edited.model)
    before = found(edited.model)
    with pytest.raises(KeyboardInterrupt):
        compute(edited, model_type, method_name)
    assert found(edited.model) == before


@over_shapes
def test_reading_a_model_leaves_everything_as_found(model_type: str) -> None:
    edited = edited_model(model_type)
    untidy(edited.model)
    before = found(edited.model)
    sample_prefixes(edited.model, edited.tokenizer, (2, 3), 0)
    measure(edited.model, [(1, 2, 3), (4, 5)], [0, 2])
    likelihoods(edited, [("The sea", " is blue")])
    edited.generate("The sea", 3)
    assert edited.base.model_type == edited.model.config.model_type
    assert found(edited.model) == before


@over_shapes
def test_an_interrupted_tail_leaves_everything_as_found(model_type: str) -> None:
    edited = edited_model(model_type)
    tail = SuffixRun.prepare(edited.model, [rewrites_of(edited)[0].rows[0]], 1)
    untidy(edited.model)
    before = found(edited.model)
    keep = torch.ones_like(tail.ids, dtype=torch.bool)
    with pytest.raises(RuntimeError):
        tail.run(tail.states[..., :-1], keep)
    assert found(edited.model) == before


@over_shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_undo_gives_the_originals_back_to_the_bit(model_type: str, dtype: torch.dtype) -> None:
    edited = edited_model(model_type, dtype=dtype)
    before = found(edited.model)
    patches = [random_patch(edited, seed, size=10.0**seed) for seed in (-3, 0, 3)]
    for patch in patches:
        edited.apply(patch)
    assert weights(edited.model) != before["weights"]
    for patch in patches:
        edited.undo(patch)
    assert found(edited.model) == before
    assert edited.patches == []


@over_shapes
@over_methods
def test_edit_then_undo_gives_the_originals_back(model_type: str, method_name: str) -> None:
    edited = edited_model(model_type)
    before = found(edited.model)
    patch = apply_edit(edited, FACTS[:1], quick(method_name), moments=moments_of(model_type))
    assert weights(edited.model) != before["weights"]
    assert edited.undo() is patch
    assert found(edited.model) == before


@over_shapes
def test_the_unedited_model_is_shown_for_a_while(model_type: str) -> None:
    edited = edited_model(model_type)
    before = weights(edited.model)
    edited.apply(random_patch(edited, 1))
    after = weights(edited.model)
    with pytest.raises(KeyboardInterrupt), edited.without_patches():
        assert weights(edited.model) == before
        raise KeyboardInterrupt
    assert weights(edited.model) == after


def learning(model: PreTrainedModel) -> list[str]:
    """Return the parameters that a text's loss reaches: all but those that see pictures."""
    ids = torch.arange(1, 101).view(2, 50)
    model(input_ids=ids, labels=ids, token_type_ids=None).loss.backward()
    return [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]


@over_shapes
@over_methods
def test_fine_tuning_works_after_editing(model_type: str, method_name: str) -> None:
    edited = edited_model(model_type)
    patch = apply_edit(edited, FACTS[:1], quick(method_name), moments=moments_of(model_type))
    model = edited.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    after_edit = weights(model)
    assert learning(model) == learning(tiny_model(model_type).train())
    optimizer.step()
    for name in patch.updates:
        assert weight_of(model, name)[1].requires_grad
        assert weights(model)[name] != after_edit[name]
