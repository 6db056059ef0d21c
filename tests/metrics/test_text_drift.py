"""The drift on text: the KL divergence of next tokens, as a plain computation gives it."""

from __future__ import annotations

import pytest
import torch

from errata import ErrataError
from errata.metrics.text_drift import LENGTH, STEP, TextDrift
from errata.models.tokens import encode
from laws.bench import edited_model, random_patch
from tiny import SENTENCES


def test_an_unchanged_model_has_not_drifted() -> None:
    edited = edited_model("llama")
    drift = TextDrift.of(edited, SENTENCES)
    assert drift.of_now(edited) == pytest.approx(0, abs=1e-7)
    edited.apply(random_patch(edited, seed=3))
    assert drift.of_now(edited) > 1e-4
    edited.undo()
    assert drift.of_now(edited) == pytest.approx(0, abs=1e-7)


def test_it_is_the_divergence_from_before_to_now() -> None:
    edited = edited_model("llama")
    drift = TextDrift.of(edited, SENTENCES)

    def alone() -> list[torch.Tensor]:
        rows = [encode(edited.tokenizer, text).ids[:LENGTH] for text in SENTENCES]
        with torch.no_grad():
            logits = [edited.model(input_ids=torch.tensor([row])).logits[0] for row in rows]
        return [each.log_softmax(-1)[STEP - 1 :: STEP].double() for each in logits]

    before = alone()
    edited.apply(random_patch(edited, seed=3))
    parts = [(b.exp() * (b - n)).sum(-1) for b, n in zip(before, alone(), strict=True)]
    assert drift.of_now(edited) == pytest.approx(float(torch.cat(parts).mean()), rel=1e-4)


def test_texts_without_tokens_are_an_error() -> None:
    with pytest.raises(ErrataError, match="no line of at least"):
        TextDrift.of(edited_model("llama"), ["", "a"])
