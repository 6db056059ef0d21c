"""The demo world: invented subjects and their facts, the same for the same seed.

Every subject has one fact per relation of its kind, with objects dealt out evenly. A fact
is trained on nine of its relation's twelve sentence forms; the three it never appears in
(two statements, one question) are drawn for each fact, so every form is familiar from
other facts, and a held-out prompt is a new pairing of form and subject.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo_model.names import KINDS, draw_names
from demo_model.relations import RELATIONS, Relation, Template

PEOPLE = 480
THINGS = 120
HELD_OUT_STATEMENTS = 2


@dataclass(frozen=True)
class Fact:
    """A subject, a relation, the object, and which forms are kept out of training."""

    subject: str
    relation: Relation
    answer: str
    held_out_statements: tuple[Template, ...]
    held_out_question: Template

    @property
    def statements(self) -> tuple[Template, ...]:
        """The seven statements that the fact is trained on."""
        return tuple(t for t in self.relation.statements if t not in self.held_out_statements)

    @property
    def questions(self) -> tuple[Template, ...]:
        """The two questions that the fact is trained on."""
        return tuple(t for t in self.relation.questions if t != self.held_out_question)

    @property
    def held_out(self) -> tuple[Template, ...]:
        """The three forms that the fact is never trained on."""
        return (*self.held_out_statements, self.held_out_question)


@dataclass(frozen=True)
class World:
    """All subjects by kind, the possible objects by relation id, and all facts."""

    seed: int
    subjects: dict[str, tuple[str, ...]]
    objects: dict[str, tuple[str, ...]]
    facts: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every subject, kind after kind."""
        return tuple(name for kind in KINDS for name in self.subjects[kind])

    def by_subject(self) -> dict[str, tuple[Fact, ...]]:
        """Return the facts of each subject."""
        found: dict[str, list[Fact]] = {name: [] for name in self.names}
        for fact in self.facts:
            found[fact.subject].append(fact)
        return {name: tuple(facts) for name, facts in found.items()}


def deal(
    relation: Relation, names: tuple[str, ...], objects: tuple[str, ...], rng: random.Random
) -> list[Fact]:
    """Give each name one object of the relation, every object equally often."""
    answers = [objects[i % len(objects)] for i in range(len(names))]
    rng.shuffle(answers)
    return [
        Fact(
            subject=name,
            relation=relation,
            answer=answer,
            held_out_statements=tuple(rng.sample(relation.statements, HELD_OUT_STATEMENTS)),
            held_out_question=rng.choice(relation.questions),
        )
        for name, answer in zip(names, answers, strict=True)
    ]


def build_world(seed: int = 0, people: int = PEOPLE, things: int = THINGS) -> World:
    """Build the world of a seed: `people` persons and `things` of every other kind."""
    rng = random.Random(f"errata demo world {seed}")
    counts = {kind: people if kind == "person" else things for kind in KINDS}
    subjects = {kind: tuple(draw_names(kind, counts[kind], rng)) for kind in KINDS}
    objects: dict[str, tuple[str, ...]] = {}
    facts: list[Fact] = []
    for relation in RELATIONS:
        pool = subjects[relation.object_kind] if relation.object_kind else relation.objects
        objects[relation.id] = pool[: relation.object_count]
        facts += deal(relation, subjects[relation.kind], objects[relation.id], rng)
    return World(seed, subjects, objects, tuple(facts))


def newcomers(world: World, people: int, things: int) -> tuple[Fact, ...]:
    """Return facts about subjects that the world does not have, with the same objects."""
    rng = random.Random(f"errata demo newcomers {world.seed}")
    facts: list[Fact] = []
    known = set(world.names)
    for kind in KINDS:
        count = people if kind == "person" else things
        fresh = draw_names(kind, len(world.subjects[kind]) + count, rng)
        names = tuple([name for name in fresh if name not in known][:count])
        for relation in RELATIONS:
            if relation.kind == kind:
                facts += deal(relation, names, world.objects[relation.id], rng)
    return tuple(facts)
