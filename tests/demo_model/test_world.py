"""The demo world: the same for the same seed, and its shipped files keep their promises."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from demo_model.names import KINDS
from demo_model.relations import RELATIONS
from demo_model.text import documents
from demo_model.world import World, build_world, newcomers
from errata.assets import ASSETS_DIR, MODEL_DIR, WORLD_DIR

Record = dict[str, Any]


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


def lines(name: str) -> list[Record]:
    text = (WORLD_DIR / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def cases() -> list[Record]:
    return lines("cases.jsonl") + lines("cases_dev.jsonl")


def edited_subjects() -> set[str]:
    return {case["requested_rewrite"]["subject"] for case in cases()}


def subjects_named(prompt: str, world: World) -> set[str]:
    """Return the subjects in a prompt that are not part of a longer one in it."""
    found = {name for name in world.names if name in prompt}
    return {name for name in found if not any(name != other and name in other for other in found)}


def test_the_same_seed_gives_the_same_world_and_text(world: World) -> None:
    again = build_world(0)
    assert again == world
    texts = [d.text for d in documents(world.facts, random.Random(3))]
    assert texts == [d.text for d in documents(again.facts, random.Random(3))]


def test_another_seed_gives_another_world(world: World) -> None:
    assert build_world(1).facts != world.facts


def test_every_subject_has_one_fact_per_relation_of_its_kind(world: World) -> None:
    assert len(set(world.names)) == len(world.names)
    for kind in KINDS:
        own = {relation.id for relation in RELATIONS if relation.kind == kind}
        for name in world.subjects[kind]:
            facts = world.by_subject()[name] if name == world.subjects[kind][0] else None
            assert facts is None or {fact.relation.id for fact in facts} == own
    pairs = [(fact.subject, fact.relation.id) for fact in world.facts]
    assert len(set(pairs)) == len(pairs)


def test_every_relation_has_twelve_forms_that_end_right_before_the_object() -> None:
    assert len(RELATIONS) == 16
    for relation in RELATIONS:
        forms = (*relation.statements, *relation.questions)
        assert len({form.text for form in forms}) == 12
        for form in forms:
            assert form.prompt.count("{}") == 1
            assert form.fill("Ada", "X").startswith(form.prompt.replace("{}", "Ada") + " X")


def test_held_out_forms_are_never_written(world: World) -> None:
    by_subject = world.by_subject()
    written = " ".join(d.text for _ in range(2) for d in documents(world.facts, random.Random(0)))
    for fact in world.facts[::40]:
        assert len(fact.held_out) == 3
        for form in fact.held_out:
            assert form.fill(fact.subject, fact.answer) not in written
    assert any(
        form.fill(fact.subject, fact.answer) in written
        for fact in by_subject[world.names[0]]
        for form in fact.statements
    )


def test_documents_know_where_their_subjects_are_named(world: World) -> None:
    names = set(world.names)
    drawn = list(documents(world.facts, random.Random(5)))
    spans = [document.text[a:b] for document in drawn for a, b in document.names]
    assert len(spans) > len(drawn) * 0.9
    assert set(spans) <= names
    single = [d for d in drawn if d.text.count(". ") + d.text.count("? ") == 0]
    assert len(single) > 0.4 * len(drawn)


def test_newcomers_are_nobody_the_world_knows(world: World) -> None:
    facts = newcomers(world, 60, 20)
    assert facts
    assert not {fact.subject for fact in facts} & set(world.names)


def test_names_share_their_parts_and_some_are_not_ascii(world: World) -> None:
    people = world.subjects["person"]
    firsts = {name.split()[0] for name in people}
    assert len(people) > 5 * len(firsts)
    assert sum(not name.isascii() for name in world.names) >= 50


@pytest.mark.parametrize(("name", "count"), [("cases.jsonl", 150), ("cases_dev.jsonl", 100)])
def test_cases_have_counterfact_form(name: str, count: int, world: World) -> None:
    records = lines(name)
    assert len(records) >= count
    answers = {(f.subject, f.relation.id): f for f in world.facts}
    for record in records:
        rewrite = record["requested_rewrite"]
        assert set(record) == {
            "case_id", "pararel_idx", "requested_rewrite", "paraphrase_prompts",
            "neighborhood_prompts", "attribute_prompts", "generation_prompts", "same_subject",
        }  # fmt: skip
        assert set(rewrite) == {"prompt", "relation_id", "target_new", "target_true", "subject"}
        assert rewrite["prompt"].count("{}") == 1
        new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
        assert new != true
        assert new == new.strip()
        fact = answers[rewrite["subject"], rewrite["relation_id"]]
        assert true == fact.answer
        assert new in world.objects[rewrite["relation_id"]]
        assert world.facts[record["pararel_idx"]] == fact
        assert len(record["paraphrase_prompts"]) == 2
        for prompt in record["paraphrase_prompts"]:
            held = [f.prompt.replace("{}", fact.subject) for f in fact.held_out_statements]
            assert any(prompt.endswith(". " + end) for end in held)
        assert 5 <= len(record["neighborhood_prompts"]) <= 10
        assert len(record["generation_prompts"]) == 10


def test_case_ids_are_unique_and_every_subject_is_edited_once() -> None:
    records = cases()
    assert len({record["case_id"] for record in records}) == len(records)
    assert len(edited_subjects()) == len(records)


def test_neighbours_share_relation_and_object_and_are_never_edited(world: World) -> None:
    edited = edited_subjects()
    answers = {(fact.subject, fact.relation.id): fact.answer for fact in world.facts}
    for record in cases():
        rewrite = record["requested_rewrite"]
        for key, target in (("neighborhood_prompts", "target_true"),
                            ("attribute_prompts", "target_new")):  # fmt: skip
            for prompt in record[key]:
                named = subjects_named(prompt, world)
                assert named
                assert not named & edited
                relation = rewrite["relation_id"]
                assert any(
                    answers.get((name, relation)) == rewrite[target]["str"] for name in named
                )


def test_same_subject_prompts_are_other_facts_of_the_subject() -> None:
    for record in cases():
        rewrite = record["requested_rewrite"]
        for other in record["same_subject"]:
            assert rewrite["subject"] in other["prompt"]
            assert other["relation_id"] != rewrite["relation_id"]


def test_zsre_records_have_mend_form() -> None:
    records = json.loads((WORLD_DIR / "zsre.json").read_text(encoding="utf-8"))
    assert len(records) >= 100
    for record in records:
        assert set(record) == {
            "subject", "src", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond",
        }  # fmt: skip
        assert record["subject"] in record["src"]
        assert record["subject"] in record["rephrase"]
        assert record["src"] != record["rephrase"]
        assert record["pred"] not in record["answers"]
        assert record["loc"].startswith("nq question: ")
        assert record["subject"] not in record["loc"]


def test_known_facts_are_of_every_kind_of_subject(world: World) -> None:
    records = json.loads((WORLD_DIR / "known.json").read_text(encoding="utf-8"))
    assert len(records) >= 200
    for record in records:
        assert record["template"].format(record["subject"]) == record["prompt"]
        assert record["prediction"].startswith(" " + record["attribute"])
    kinds = {kind for r in records for kind in KINDS if r["subject"] in world.subjects[kind]}
    assert kinds == set(KINDS)


def test_instruction_rows_leave_out_edited_subjects_or_bring_new_ones(world: World) -> None:
    edited = edited_subjects()
    for name in ("instruct_same.jsonl", "instruct_new.jsonl"):
        records = lines(name)
        assert len(records) >= 600
        for record in records:
            assert set(record) == {"instruction", "input", "output", "answer"}
            assert record["output"].startswith(record["answer"])
            named = subjects_named(record["instruction"], world)
            assert not named & edited
            assert bool(named) == (name == "instruct_same.jsonl")


def test_texts_are_large_enough_for_statistics_and_perplexity() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    for name, tokens in (("text.jsonl", 60_000), ("heldout.jsonl", 10_000)):
        texts = [record["text"] for record in lines(name)]
        assert sum(map(len, tokenizer(texts)["input_ids"])) >= tokens


def test_the_tokenizer_puts_bos_in_front_and_reads_any_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert len(tokenizer) == 2048
    ids = tokenizer("Zoé speaks 日本語")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Zoé speaks 日本語"
    assert tokenizer.pad_token is None


def test_most_objects_are_a_single_token(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    objects = {o for pool in world.objects.values() for o in pool}
    ids = tokenizer([" " + o for o in objects], add_special_tokens=False)["input_ids"]
    assert sum(len(i) == 1 for i in ids) > 0.8 * len(objects)


def test_the_shipped_files_are_small() -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(ASSETS_DIR) <= 6_000_000
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 4_000_000
