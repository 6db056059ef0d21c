"""The 16 relations of the demo world: objects and twelve sentence forms of each.

Nine forms are statements and three are questions. In all of them the text before the object
ends right where the object begins, so each can serve as an editing prompt. Which three of
the twelve a fact is never trained on (two statements, one question) differs from fact to
fact; see `world.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from demo_model.forms_people import PEOPLE
from demo_model.forms_things import THINGS


@dataclass(frozen=True)
class Template:
    """One sentence form, such as `{s} speaks {o} at home.`"""

    text: str

    @property
    def prompt(self) -> str:
        """The form up to the object, with one `{}` for the subject and no trailing space."""
        return self.text.split("{o}")[0].rstrip().replace("{s}", "{}")

    @property
    def is_question(self) -> bool:
        """Whether the object answers a question."""
        return "? " in self.text

    def fill(self, subject: str, answer: str) -> str:
        """Return the whole sentence."""
        return self.text.replace("{s}", subject).replace("{o}", answer)


@dataclass(frozen=True)
class Relation:
    """A relation: whose it is, its possible objects, and how it is said.

    `objects` is empty where the objects are themselves subjects of the world; then
    `object_kind` and `object_count` say which and how many of them.
    """

    id: str
    name: str
    kind: str
    objects: tuple[str, ...]
    object_kind: str
    object_count: int
    statements: tuple[Template, ...]
    questions: tuple[Template, ...]
    pronouns: tuple[str, ...]


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.strip().splitlines())


def _relation(number: int, kind: str, name: str, objects: str, forms: str) -> Relation:
    """Read one relation: nine statements, three questions, two pronoun sentences."""
    lines = _lines(forms)
    assert len(lines) == 14, f"{name} has {len(lines)} forms"
    object_kind, _, count = objects.partition(":")
    by_kind = bool(count)
    return Relation(
        id=f"R{number:02d}",
        name=name,
        kind=kind,
        objects=() if by_kind else tuple(objects.split()),
        object_kind=object_kind if by_kind else "",
        object_count=int(count) if by_kind else len(objects.split()),
        statements=tuple(map(Template, lines[:9])),
        questions=tuple(map(Template, lines[9:12])),
        pronouns=lines[12:],
    )


RELATIONS: tuple[Relation, ...] = tuple(
    _relation(number, *row) for number, row in enumerate(PEOPLE + THINGS, start=1)
)
