"""Each method makes a real model say the new answers; undo restores it; export keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.data.case import Case
from errata.data.common_facts import Fact
from errata.experiments.known_facts import says
from errata.methods import METHODS
from errata.models.tokens import encode
from errata.patches.base import Edit, load_edit
from errata.patches.edited_model import EditedModel, load
from real.conftest import Command

pytestmark = pytest.mark.real
LOGITS = 1e-4
"""Largest difference of logits, relative to the largest logit."""


def says_new(edited: EditedModel, cases: list[Case]) -> list[bool]:
    prompts = [case.request.text for case in cases]
    return says(edited, prompts, [case.request.target for case in cases])


@pytest.mark.parametrize("method", METHODS)
def test_the_model_says_the_new_answers_and_keeps_other_facts(
    method: str,
    edited: EditedModel,
    patches: dict[str, Path],
    cases: list[Case],
    known: list[Fact],
) -> None:
    chosen = cases[: METHODS[method].batch_limit]
    assert not any(says_new(edited, chosen))
    edited.apply(load_edit(patches[method]))
    assert all(says_new(edited, chosen))
    again = [(text, case.request.target) for case in chosen for text in case.paraphrases]
    assert sum(says(edited, *zip(*again, strict=True))) >= len(again) / 2
    subjects = {case.request.subject for case in chosen}
    others = [fact for fact in known if fact.subject not in subjects]
    kept = says(edited, [fact.text for fact in others], [fact.answer for fact in others])
    assert sum(kept) >= 0.8 * len(others), [
        fact.text for fact, right in zip(others, kept, strict=True) if not right
    ]


def test_undo_restores_every_bit(edited: EditedModel, patches: dict[str, Path]) -> None:
    before = {name: each.clone() for name, each in edited.model.state_dict().items()}
    edits = [edited_with(edited, path) for path in patches.values()]
    changed = {
        name
        for name, each in edited.model.state_dict().items()
        if not torch.equal(each, before[name])
    }
    assert changed
    for patch in edits:  # the first one first, so that the others are computed again
        edited.undo(patch)
    for name, each in edited.model.state_dict().items():
        assert torch.equal(each, before[name]), name


def edited_with(edited: EditedModel, path: Path) -> Edit:
    patch = load_edit(path)
    edited.apply(patch)
    return patch


def test_an_exported_adapter_has_the_logits_of_the_patched_model(
    name: str,
    edited: EditedModel,
    patches: dict[str, Path],
    cases: list[Case],
    errata: Command,
    tmp_path: Path,
) -> None:
    from peft import PeftModel

    errata("export", name, "--patch", patches["memit"], "--to", "lora", tmp_path / "lora")
    tuned = PeftModel.from_pretrained(load(name, dtype="float32").model, str(tmp_path / "lora"))
    for case in cases:
        ids = torch.tensor([encode(edited.tokenizer, case.request.text).ids])
        with torch.no_grad():
            base = edited.model(ids).logits
            edited.apply(load_edit(patches["memit"]))
            patched = edited.model(ids).logits
            edited.undo()
            exported = tuned(ids).logits
        bound = LOGITS * float(patched.abs().max())
        assert float((exported - patched).abs().max()) < bound
        assert float((base - patched).abs().max()) > 10 * bound
