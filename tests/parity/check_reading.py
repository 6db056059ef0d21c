"""Comparisons of what is read before anything is edited: token ids, states, second moments.

Each takes what is recorded on one model and raises `AssertionError` where we differ.
"""

from __future__ import annotations

from typing import get_args

import torch

from errata.data.request import SLOT
from errata.models.families import family_of
from errata.models.hooks import Site, first_tensor, record
from errata.models.tokens import Position, encode, position_of
from errata.statistics.measure import measure, token_rows
from parity.recorded import Recorded


def check_tokens(recorded: Recorded) -> None:
    """Ids and the position of every strategy on all prompt/subject pairs.

    The fork's own `subject_first` counts from the end and is one off (defect T1), so that
    one is held against the offsets alone.
    """
    pairs = recorded.json("tokens")
    assert pairs, "tokens.json is empty"
    inputs = {pair["id"]: pair for pair in recorded.inputs("token_pairs")}
    assert {pair["id"] for pair in pairs} == set(inputs), "tokens.json lacks pairs, or has others"
    for pair in pairs:
        assert pair["prompt"] == inputs[pair["id"]]["prompt"], pair
        assert pair["subject"] == inputs[pair["id"]]["subject"], pair
        start = pair["prompt"].index(SLOT)
        span = (start, start + len(pair["subject"]))
        text = pair["prompt"].replace(SLOT, pair["subject"])
        coded = encode(recorded.tokenizer, text)
        assert text == pair["text"] and list(span) == pair["char_span"], pair
        assert list(coded.ids) == pair["input_ids"], (pair["id"], coded.ids, pair["input_ids"])
        assert recorded.tokenizer.convert_ids_to_tokens(coded.ids) == pair["tokens"], pair["id"]
        assert len(coded.ids) == pair["n_tokens"], pair["id"]
        ours = {where: position_of(coded, span, where) for where in get_args(Position)}
        expected = {
            "subject_first": pair["offsets_first"],
            "subject_last": pair["offsets_last"],
            "subject_first_after_last": pair["offsets_first_after_last"],
            "last": pair["n_tokens"] - 1,
        }
        assert ours == expected, (pair["id"], ours, expected)
        for where in ("subject_last", "subject_first_after_last", "last"):
            for index in pair["cyj"][where].values():
                assert index % pair["n_tokens"] == ours[where], (pair["id"], where, index, ours)


@torch.no_grad()
def check_forward(recorded: Recorded) -> None:
    """Ids, the last logits and the hidden states of a few prompts, read through `record`."""
    model, tensors = recorded.model, recorded.tensors("forward")
    family, cases = family_of(model), recorded.json("forward")
    assert cases, "forward.json is empty"
    for number, case in enumerate(cases):
        ids = torch.tensor([encode(recorded.tokenizer, case["prompt"]).ids])
        assert ids[0].tolist() == case["input_ids"], case
        assert torch.equal(ids, tensors[f"{number}.input_ids"]), case
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        expected = tensors[f"{number}.last_logits"]
        recorded.hold("forward", "states", f"{number}.last_logits", logits, expected)
        assert recorded.tokenizer.decode(logits.argmax().item()) == case["top1"], case
        if f"{number}.hidden_states" in tensors:
            count = family.block_count(model)
            sites = [
                Site(family.block(model, 0), "input"),
                *(Site(family.block(model, block), "output") for block in range(count - 1)),
                Site(model.get_output_embeddings(), "input"),
            ]
            states = torch.cat([first_tensor(state) for state in record(model, ids, sites)])
            expected = tensors[f"{number}.hidden_states"]
            recorded.hold("forward", "states", f"{number}.hidden_states", states, expected)
    tensors.assert_all_taken()


def check_moment(recorded: Recorded) -> None:
    """The second moment of every recorded block, on the same texts in the same order."""
    settings, texts = recorded.json("cov"), recorded.inputs("stat_texts")
    assert len(texts) == settings["n_texts"]
    chosen = [texts[index] for index in settings["sampled_indices"]]
    assert len(chosen) == settings["sample_size"]
    rows = token_rows(recorded.tokenizer, chosen, settings["max_length"])
    counts = [count for count in settings["token_count_by_text"] if count]
    assert [len(row) for row in rows] == counts, "other tokens per text"
    blocks = [int(block) for block in settings["layers"]]
    assert blocks, "cov.json names no layers"
    moments, tensors = measure(recorded.model, rows, blocks), recorded.tensors("cov")
    for block, layer in zip(blocks, settings["layers"].values(), strict=True):
        assert recorded.family.weight_name(block) == f"{layer['module']}.weight", layer
        assert moments[block].count == layer["token_count"], (moments[block].count, layer)
        matrix, expected = moments[block].matrix, tensors[f"layer{block}.moment"]
        recorded.hold("second moment", "states", f"block {block}", matrix, expected)
        recorded.hold("second moment", "states", "trace", matrix.trace(), layer["trace"])
    tensors.assert_all_taken()
