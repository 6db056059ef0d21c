"""Test cases about the demo world, in the formats of CounterFact, zsRE and known_1000.

Subjects are split once: those that cases edit, and those that serve as neighbours. A
neighbour's fact is therefore never an edited fact, of any case. Only facts that the
model recalls are written; `knows` decides that, so nothing here needs torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from demo_model.names import KINDS
from demo_model.relations import Template
from demo_model.text import filler, trivia
from demo_model.world import Fact, World

Record = dict[str, Any]
Knows = Callable[[Sequence[tuple[str, str]]], list[bool]]

NEIGHBOURS, FEWEST_NEIGHBOURS = 10, 5
EDITED_SHARE = 0.34


@dataclass(frozen=True)
class Split:
    """Which subjects the test cases edit, which the dev cases edit, and all the others."""

    test: tuple[str, ...]
    dev: tuple[str, ...]
    others: frozenset[str]


def split_subjects(world: World) -> Split:
    """Reserve a third of each kind for editing, three fifths of it for the test cases."""
    rng = random.Random(f"errata demo split {world.seed}")
    test: list[str] = []
    dev: list[str] = []
    for kind in KINDS:
        names = world.subjects[kind]
        pool = rng.sample(names, round(EDITED_SHARE * len(names)))
        cut = round(0.6 * len(pool))
        test += pool[:cut]
        dev += pool[cut:]
    rng.shuffle(test)
    rng.shuffle(dev)
    return Split(tuple(test), tuple(dev), frozenset(world.names) - {*test, *dev})


def prompt_of(fact: Fact, template: Template) -> str:
    """Return the text before the object."""
    return template.prompt.replace("{}", fact.subject)


class CaseWriter:
    """Writes CounterFact records of one world for one model."""

    def __init__(self, world: World, split: Split, knows: Knows, rng: random.Random) -> None:
        self.world = world
        self.knows = knows
        self.rng = rng
        self.by_subject = world.by_subject()
        self.number = {fact: i for i, fact in enumerate(world.facts)}
        self.neighbours: dict[tuple[str, str], list[Fact]] = {}
        for fact in world.facts:
            if fact.subject in split.others:
                key = (fact.relation.id, fact.answer)
                self.neighbours.setdefault(key, []).append(fact)

    def prompts_about(self, relation_id: str, answer: str, count: int) -> list[str]:
        """Return prompts, known to the model, about others with that object."""
        pool = self.neighbours.get((relation_id, answer), [])
        facts = self.rng.sample(pool, len(pool))
        rows = [(prompt_of(fact, self.rng.choice(fact.statements)), answer) for fact in facts]
        known = [row[0] for row, hit in zip(rows, self.knows(rows), strict=True) if hit]
        return known[:count]

    def target(self, fact: Fact, answer: str) -> dict[str, str]:
        """Return an object as CounterFact writes it, with an id of our own."""
        place = self.world.objects[fact.relation.id].index(answer)
        return {"str": answer, "id": f"{fact.relation.id}.{place:02d}"}

    def same_subject(self, fact: Fact) -> list[Record]:
        """Return other facts that the model knows about the subject."""
        others = [other for other in self.by_subject[fact.subject] if other is not fact]
        rows = [(prompt_of(o, self.rng.choice(o.statements)), o.answer) for o in others]
        return [
            {"prompt": prompt, "answer": answer, "relation_id": other.relation.id}
            for other, (prompt, answer), hit in zip(others, rows, self.knows(rows), strict=True)
            if hit
        ]

    def write(self, fact: Fact, case_id: int) -> Record | None:
        """Return the record of a fact, or None if the model does not know enough for it."""
        relation, rng = fact.relation, self.rng
        form = rng.choice(fact.statements)
        new = rng.choice([o for o in self.world.objects[relation.id] if o != fact.answer])
        paraphrases = [f"{filler(rng)} {prompt_of(fact, t)}" for t in fact.held_out_statements]
        asked = [prompt_of(fact, form), *(prompt_of(fact, t) for t in fact.held_out_statements)]
        if not all(self.knows([(prompt, fact.answer) for prompt in (*asked, *paraphrases)])):
            return None
        neighbours = self.prompts_about(relation.id, fact.answer, NEIGHBOURS)
        if len(neighbours) < FEWEST_NEIGHBOURS:
            return None
        return {
            "case_id": case_id,
            "pararel_idx": self.number[fact],
            "requested_rewrite": {
                "prompt": form.prompt,
                "relation_id": relation.id,
                "target_new": self.target(fact, new),
                "target_true": self.target(fact, fact.answer),
                "subject": fact.subject,
            },
            "paraphrase_prompts": paraphrases,
            "neighborhood_prompts": neighbours,
            "attribute_prompts": self.prompts_about(relation.id, new, NEIGHBOURS),
            "generation_prompts": [
                *(prompt_of(fact, t) for t in relation.statements),
                fact.subject,
            ],
            "same_subject": self.same_subject(fact),
        }

    def write_all(self, subjects: Sequence[str], first_id: int) -> list[Record]:
        """Return at most one record per subject, about a fact drawn at random."""
        made: list[Record] = []
        for subject in subjects:
            facts = self.by_subject[subject]
            for fact in self.rng.sample(facts, len(facts)):
                record = self.write(fact, first_id + len(made))
                if record is not None:
                    made.append(record)
                    break
        return made


def counterfact(world: World, split: Split, knows: Knows) -> tuple[list[Record], list[Record]]:
    """Return the test cases and the dev cases, whose ids begin at 0 and at 1000."""
    writer = CaseWriter(world, split, knows, random.Random(f"errata demo cases {world.seed}"))
    return writer.write_all(split.test, 0), writer.write_all(split.dev, 1000)


def zsre(world: World, split: Split, knows: Knows, count: int = 120) -> list[Record]:
    """Return zsRE records in MEND's format.

    `pred` is the model's current answer; `alt` and `answers` are the new object, so that
    a reader who takes either edits the same. Objects that need an article are left out.
    """
    rng = random.Random(f"errata demo zsre {world.seed}")
    facts = [f for f in world.facts if all(t.text.endswith("? {o}.") for t in f.relation.questions)]
    edited = [f for f in facts if f.subject in split.test]
    asides = [f for f in facts if f.subject in split.others]
    made: list[Record] = []
    for fact in rng.sample(edited, len(edited)):
        if len(made) == count or any(r["subject"] == fact.subject for r in made):
            continue
        aside = rng.choice(asides)
        question = trivia(rng.choice(aside.questions)).split("?")[0]
        ask = prompt_of(fact, rng.choice(fact.questions))
        again = prompt_of(fact, fact.held_out_question)
        loc = question.replace("{s}", aside.subject)
        rows = [(ask, fact.answer), (again, fact.answer), (f"{loc}?", aside.answer)]
        if not all(knows(rows)):
            continue
        new = rng.choice([o for o in world.objects[fact.relation.id] if o != fact.answer])
        made.append(
            {
                "subject": fact.subject,
                "src": ask,
                "pred": fact.answer,
                "rephrase": again,
                "alt": new,
                "answers": [new],
                "loc": loc,
                "loc_ans": aside.answer,
                "cond": f"{fact.answer} >> {new} || {ask}",
            }
        )
    return made


def known_facts(world: World, knows: Knows, per_kind: int = 50) -> list[Record]:
    """Return facts for causal tracing, as many of each kind of subject."""
    rng = random.Random(f"errata demo known {world.seed}")
    made: list[Record] = []
    for kind in KINDS:
        facts = [fact for fact in world.facts if fact.relation.kind == kind]
        drawn = [(fact, rng.choice(fact.statements)) for fact in rng.sample(facts, len(facts))]
        hits = knows([(prompt_of(fact, t), fact.answer) for fact, t in drawn])
        known = [pair for pair, hit in zip(drawn, hits, strict=True) if hit]
        for fact, form in known[:per_kind]:
            made.append(
                {
                    "known_id": len(made),
                    "subject": fact.subject,
                    "attribute": fact.answer,
                    "template": form.prompt,
                    "prediction": f" {fact.answer}{form.text.split('{o}')[1]}",
                    "prompt": prompt_of(fact, form),
                    "relation_id": fact.relation.id,
                }
            )
    return made
