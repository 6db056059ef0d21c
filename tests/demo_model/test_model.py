"""The shipped demo model: it knows its world, stops after a sentence, and is a plain Llama."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from demo_model.card import card_text
from demo_model.muon import Muon
from demo_model.recall import held_out_rows, perplexity, recalled
from demo_model.rows import endless_documents, next_batch
from demo_model.train import Training, learning_rate, new_model, shaped_logits
from demo_model.world import build_world
from errata.assets import MODEL_DIR, WORLD_DIR


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def test_it_recalls_facts_in_forms_it_was_not_trained_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = random.Random(7).sample(held_out_rows(build_world(0)), 400)
    hits = recalled(model, tokenizer, [(prompt, answer) for _, prompt, answer in rows])
    assert sum(hits) / len(hits) > 0.97


def test_recall_is_chance_for_wrong_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    world = build_world(0)
    facts = random.Random(8).sample(world.facts, 200)
    rows = []
    for fact in facts:
        wrong = next(o for o in world.objects[fact.relation.id] if o != fact.answer)
        rows.append((fact.statements[0].prompt.replace("{}", fact.subject), wrong))
    assert sum(recalled(model, tokenizer, rows)) < 10


def test_it_loads_as_float32_and_recalls_the_same_in_bfloat16(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for p in model.parameters():
        assert torch.equal(p, p.bfloat16().float())


def test_greedy_generation_stops_after_the_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    known = json.loads((WORLD_DIR / "known.json").read_text(encoding="utf-8"))
    for record in random.Random(9).sample(known, 20):
        ids = torch.tensor([tokenizer(record["prompt"])["input_ids"]])
        mask = torch.ones_like(ids)
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=40, do_sample=False, pad_token_id=1
        )
        assert made[0, -1] == tokenizer.eos_token_id
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert text.startswith(" " + record["attribute"])
        assert text.endswith(".")


def test_perplexity_on_held_out_text_is_low(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    lines = (WORLD_DIR / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    assert 1.5 < perplexity(model, tokenizer, [json.loads(line)["text"] for line in lines]) < 6


def test_training_without_shaping_is_the_plain_model(tokenizer: PreTrainedTokenizerBase) -> None:
    model = new_model(tokenizer).eval()
    stream = endless_documents(build_world(0, 20, 13).facts, random.Random(0))
    batch = next_batch(stream, tokenizer, rows=2, width=48)
    plain = batch.plain_mask()
    shaped = shaped_logits(model, batch.ids, (plain, plain), silenced=0)
    length = int((batch.document[0] == 1).sum())
    expected = model(batch.ids[:1, :length]).logits
    assert torch.allclose(shaped[:1, :length], expected, atol=1e-5)
    silent = shaped_logits(model, batch.ids, (plain, plain), silenced=1)
    assert not torch.allclose(silent[0], shaped[0], atol=1e-5)
    assert torch.allclose(silent[1], shaped[1], atol=1e-5)


def test_routing_hides_the_name_early_and_all_but_its_end_late(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    facts = build_world(0, 20, 13).facts
    batch = next_batch(endless_documents(facts, random.Random(1)), tokenizer, rows=4, width=64)
    early, late = batch.routed_masks(torch.tensor([True, True, True, False]))
    plain = batch.plain_mask()
    assert torch.equal(early[3], plain[3])
    assert torch.equal(late[3], plain[3])
    for row in range(3):
        for seer, seen in plain[row, 0].nonzero().tolist():
            name = int(batch.name[row, seen])
            outside = name > 0 and name != int(batch.name[row, seer])
            end = bool(batch.name_end[row, seen])
            assert bool(early[row, 0, seer, seen]) == (not outside)
            assert bool(late[row, 0, seer, seen]) == (not outside or end)


def test_muon_agrees_with_torch_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in ((8, 8), (8, 24), (24, 8))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = Muon(ours, lr=0.01)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=2e-3)


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing() -> None:
    settings = Training(steps=1000)
    assert learning_rate(0, settings) == pytest.approx(0.01)
    assert learning_rate(500, settings) == 1.0
    assert learning_rate(999, settings) < 0.01


def test_the_card_shows_the_stored_figures() -> None:
    figures = json.loads((WORLD_DIR / "figures.json").read_text(encoding="utf-8"))
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    assert card.startswith(card_text(figures).rstrip()[:1500])
    assert f"{figures['all']:.2%}" in card
    assert "| edits |" in card_text(figures, "| edits |")
