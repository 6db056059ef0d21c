"""The lens reads a block as if it were the last: the same as cutting the model there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from errata.tracing.lens import read_lens
from errata.tracing.question import ask_model
from laws.bench import edited_model, found, over_all, untidy
from plain import cut_after
from tiny import BLOCKS, FACTS


@over_all
def test_every_block_is_read_as_if_it_were_the_last(model_type: str) -> None:
    edited, fact = edited_model(model_type), FACTS[1]
    question = ask_model(edited.model, edited.tokenizer, fact.text, fact.span)
    untidy(edited.model)
    before = found(edited.model)
    lens = read_lens(edited.model, edited.tokenizer, question)
    assert found(edited.model) == before
    edited.model.eval()
    ids = torch.tensor([question.ids[: question.length]])
    for block in range(BLOCKS):
        with cut_after(edited.model, block), torch.no_grad():
            likely = edited.model(input_ids=ids, use_cache=False).logits[0].softmax(-1)
        np.testing.assert_allclose(
            lens.answers[:, block], likely[:, question.targets[0]], rtol=1e-4
        )
        np.testing.assert_allclose(lens.likeliest[:, block], likely.max(-1).values, rtol=1e-4)
        said = [edited.tokenizer.decode([i]) for i in likely.argmax(-1).tolist()]
        assert [row[block] for row in lens.said] == said
    assert lens.said[-1][-1] == edited.tokenizer.decode(question.said[:1])


def test_another_token_can_be_followed() -> None:
    edited, fact = edited_model("gpt2"), FACTS[1]
    question = ask_model(edited.model, edited.tokenizer, fact.text, fact.span)
    other = read_lens(edited.model, edited.tokenizer, question, answer=question.targets[0] + 1)
    same = read_lens(edited.model, edited.tokenizer, question)
    assert other.answers == pytest.approx(other.answers) and not np.array_equal(
        other.answers, same.answers
    )
