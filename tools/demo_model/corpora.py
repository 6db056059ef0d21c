"""Texts of the demo world: for second moments, for perplexity and for fine-tuning."""

from __future__ import annotations

import random
from collections.abc import Sequence

from demo_model.cases import Record, Split, prompt_of
from demo_model.text import documents
from demo_model.world import Fact, World, newcomers

INSTRUCTIONS = 640
NEW_PEOPLE, NEW_THINGS = 60, 20


def texts(world: World, name: str, count: int) -> list[Record]:
    """Return documents drawn as for training, but anew; `name` tells one draw from another."""
    rng = random.Random(f"errata demo {name} {world.seed}")
    made: list[Record] = []
    while len(made) < count:
        made += [{"text": document.text} for document in documents(world.facts, rng)]
    return made[:count]


def _instructions(facts: Sequence[Fact], rng: random.Random) -> list[Record]:
    """Turn each fact into a row: a question or a sentence to finish, and the object."""
    rows: list[Record] = []
    for fact in facts:
        form = rng.choice(rng.choice((fact.statements, fact.questions)))
        rows.append(
            {
                "instruction": prompt_of(fact, form),
                "input": "",
                "output": f"{fact.answer}{form.text.split('{o}')[1]}",
                "answer": fact.answer,
            }
        )
    return rows


def instructions_same(world: World, split: Split) -> list[Record]:
    """Return rows about subjects of the world that no case edits."""
    rng = random.Random(f"errata demo same {world.seed}")
    facts = [fact for fact in world.facts if fact.subject in split.others]
    return _instructions(rng.sample(facts, INSTRUCTIONS), rng)


def instructions_new(world: World) -> list[Record]:
    """Return rows about subjects that the world does not have: all of it is news."""
    rng = random.Random(f"errata demo new {world.seed}")
    facts = newcomers(world, NEW_PEOPLE, NEW_THINGS)
    rows = _instructions([*facts, *facts], rng)
    unique = list({row["instruction"]: row for row in rows}.values())
    return rng.sample(unique, INSTRUCTIONS)
