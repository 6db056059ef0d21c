"""Common facts for trying out a real model: cities, capitals, languages, continents and others.

No model knows all of them: `experiments.known_facts` selects those that one does. As an edit, a
fact gets the answer of another fact of its relation; the others are its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from errata.data.case import Case
from errata.data.request import SLOT, EditRequest

NEIGHBOURS = 4
"""Number of neighbours of a case."""


@dataclass(frozen=True, eq=False)
class Relation:
    """A relation between subjects and answers, with prompts that end before the answer."""

    prompt: str
    paraphrases: tuple[str, ...]
    question: str
    """The same as a question, for chat models."""
    answers: dict[str, str]


class Fact(NamedTuple):
    """One subject of a relation."""

    relation: Relation
    subject: str

    @property
    def answer(self) -> str:
        """The true answer."""
        return self.relation.answers[self.subject]

    @property
    def text(self) -> str:
        """The prompt about the subject."""
        return self.relation.prompt.replace(SLOT, self.subject)

    @property
    def question(self) -> str:
        """The question about the subject."""
        return self.relation.question.replace(SLOT, self.subject)


RELATIONS = (
    Relation(
        "The {} is located in the city of",
        ("To see the {}, travel to the city of", "The {} is a famous sight in the city of"),
        "In which city is the {}?",
        {
            "Eiffel Tower": "Paris",
            "Colosseum": "Rome",
            "Brandenburg Gate": "Berlin",
            "Louvre": "Paris",
            "Kremlin": "Moscow",
            "Golden Gate Bridge": "San Francisco",
            "Empire State Building": "New York",
        },
    ),
    Relation(
        "The capital of {} is",
        ("The capital city of {} is", "The government of {} has its seat in the city of"),
        "What is the capital of {}?",
        {
            "Japan": "Tokyo",
            "Spain": "Madrid",
            "France": "Paris",
            "Austria": "Vienna",
            "Russia": "Moscow",
            "Portugal": "Lisbon",
        },
    ),
    Relation(
        "The official language of {} is",
        ("The language spoken by most people in {} is", "In {}, most people speak"),
        "What is the official language of {}?",
        {
            "Mexico": "Spanish",
            "Germany": "German",
            "France": "French",
            "Italy": "Italian",
            "Brazil": "Portuguese",
        },
    ),
    Relation(
        "The mother tongue of {} is",
        ("The native language of {} is", "The first language of {} was"),
        "What was the mother tongue of {}?",
        {
            "Voltaire": "French",
            "Goethe": "German",
            "Dante": "Italian",
            "Tolstoy": "Russian",
            "Cervantes": "Spanish",
        },
    ),
    Relation(
        "{} is a country on the continent of",
        ("The country of {} lies on the continent of", "{} is located on the continent of"),
        "On which continent is {}?",
        {
            "Nigeria": "Africa",
            "Poland": "Europe",
            "Kenya": "Africa",
            "Vietnam": "Asia",
            "Sweden": "Europe",
        },
    ),
    Relation(
        "The chemical symbol for {} is",
        ("In chemical formulas, {} is written as",),
        "What is the chemical symbol for {}?",
        {"gold": "Au", "silver": "Ag", "iron": "Fe", "sodium": "Na", "copper": "Cu"},
    ),
)


def common_facts() -> list[Fact]:
    """Return all facts, one relation after the other."""
    return [Fact(relation, subject) for relation in RELATIONS for subject in relation.answers]


def cases_of(facts: Sequence[Fact]) -> list[tuple[Fact, Case]]:
    """Return facts as edit cases whose new answers and neighbours are other facts among `facts`.

    Neighbours with the same answer come first. A fact without another answer or without a
    neighbour in its relation is left out.
    """
    found = []
    for fact in facts:
        others = [each for each in facts if each.relation is fact.relation and each != fact]
        after = [each for each in others if facts.index(each) > facts.index(fact)]
        target = next(
            (each.answer for each in (*after, *others) if each.answer != fact.answer), None
        )
        near = [each for each in others if each.answer != target]
        near.sort(key=lambda each: each.answer != fact.answer)
        if target is not None and near:
            found.append((fact, _case(fact, target, near[:NEIGHBOURS])))
    return found


def _case(fact: Fact, target: str, near: Sequence[Fact]) -> Case:
    relation, subject = fact.relation, fact.subject
    return Case(
        request=EditRequest(prompt=relation.prompt, subject=subject, target=target),
        target_true=fact.answer,
        paraphrases=tuple(each.replace(SLOT, subject) for each in relation.paraphrases),
        neighbours=tuple(each.text for each in near),
        neighbour_answers=tuple(each.answer for each in near),
    )
