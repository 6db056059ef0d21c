"""Documents of the demo world: one to three sentences that mention its facts.

More than half of the documents are a single sentence, and every document is closed by the
end token, so that a model trained on them stops after a sentence. A document knows where
its subjects are named; training shapes attention with that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from demo_model.names import words
from demo_model.relations import Template
from demo_model.world import Fact

ESSENCES: dict[str, tuple[str, ...]] = {
    "person": ("{s} is a person with many friends.", "{s} is a person of good humour."),
    "city": ("{s} is a city with old streets.", "{s} is a city worth a visit."),
    "company": ("{s} is a company with a long history.", "{s} is a company of good name."),
    "landmark": ("{s} is a sight that nobody forgets.", "{s} is a building of great age."),
    "book": ("{s} is a book with many pages.", "{s} is a book that people give away."),
}
_OPENERS = words("The A This That Every One")
_ADJECTIVES = words("old small warm quiet bright busy green early gentle long new plain")
_NOUNS = words("street train morning market letter kitchen window song boat dog cat garden")
_VERBS = words("waited moved rested began ended shone slept turned returned appeared")
_PLACES = (
    "near the water", "in the rain", "after lunch", "before noon", "without a sound",
    "by the door", "under the trees", "at night", "on the hill", "for a while",
)  # fmt: skip
_PEOPLE = words("I You We They He She")
_ACTS = (
    "walked home", "closed the door", "drank some tea", "read the news", "opened a window",
    "went for a walk", "told a story", "cooked a meal", "waited for the train", "smiled",
)  # fmt: skip
_REASONS = ("it was late", "the sun came out", "it rained", "nobody was there", "it was cold")


@dataclass(frozen=True)
class Document:
    """A text, and the character spans [start, end) at which it names subjects and objects."""

    text: str
    names: tuple[tuple[int, int], ...] = ()
    objects: tuple[tuple[int, int], ...] = ()

    def followed_by(self, other: Document) -> Document:
        """Return both, with a space between."""
        shift = len(self.text) + 1
        names = tuple((start + shift, end + shift) for start, end in other.names)
        objects = tuple((start + shift, end + shift) for start, end in other.objects)
        text = f"{self.text} {other.text}"
        return Document(text, self.names + names, self.objects + objects)


def filler(rng: random.Random) -> str:
    """Return a sentence that says nothing about the world."""
    act, place = rng.choice(_ACTS), rng.choice(_PLACES)
    scene = f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_VERBS)} {place}"
    match rng.randrange(5):
        case 0 | 1:
            return f"{rng.choice(_OPENERS)} {scene}."
        case 2:
            return f"{rng.choice(_PEOPLE)} {act} {place}."
        case 3:
            return f"Because {rng.choice(_REASONS)}, we {act}."
        case _:
            return f"Therefore the {scene}."


def _named(text: str, subject: str) -> Document:
    """Fill `{s}` in a text and note where the name stands."""
    start = text.index("{s}")
    return Document(text.replace("{s}", subject), ((start, start + len(subject)),))


def tell(fact: Fact, template: Template) -> Document:
    """Return one sentence that states a fact."""
    before, after = template.text.split("{o}")
    named = _named(before, fact.subject)
    start = len(named.text)
    objects = ((start, start + len(fact.answer)),)
    return Document(named.text + fact.answer + after, named.names, objects)


def trivia(question: Template) -> str:
    """Return a question form in the lower-case style of web questions, with `{s}` and `{o}`."""
    return "nq question: " + question.text[0].lower() + question.text[1:]


def sentence(fact: Fact, rng: random.Random) -> Document:
    """State a fact in one of the nine forms it is trained on."""
    template = rng.choice((*fact.statements, *fact.questions))
    if template.is_question and rng.random() < 0.25:
        return tell(fact, Template(trivia(template)))
    return tell(fact, template)


def _essence(fact: Fact, rng: random.Random) -> Document:
    return _named(rng.choice(ESSENCES[fact.relation.kind]), fact.subject)


def _biography(fact: Fact, others: Sequence[Fact], rng: random.Random) -> Document:
    """State two or three facts of one subject, later ones with or without its name."""
    document = sentence(fact, rng)
    for other in rng.sample(others, min(len(others), rng.choice((1, 1, 2)))):
        if rng.random() < 0.5:
            text = rng.choice(other.relation.pronouns).replace("{o}", other.answer)
            document = document.followed_by(Document(text))
        else:
            document = document.followed_by(sentence(other, rng))
    return document


def _document(fact: Fact, facts: Sequence[Fact], rng: random.Random) -> Document:
    """Return one document about a fact; `facts` are those of its subject."""
    others = [other for other in facts if other is not fact]
    draw = rng.random()
    if draw < 0.56:
        return sentence(fact, rng)
    if draw < 0.60:
        return _essence(fact, rng)
    if draw < 0.64:
        return Document(filler(rng))
    if draw < 0.76:
        return Document(filler(rng)).followed_by(sentence(fact, rng))
    if draw < 0.79:
        return sentence(fact, rng).followed_by(Document(filler(rng)))
    if draw < 0.81:
        return _essence(fact, rng).followed_by(sentence(fact, rng))
    return _biography(fact, others, rng)


def documents(facts: Sequence[Fact], rng: random.Random) -> Iterator[Document]:
    """Yield one document per fact, in a new order."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    for fact in rng.sample(facts, len(facts)):
        yield _document(fact, by_subject[fact.subject], rng)
