"""The prompts of a case: the edit's own, paraphrases, neighbours, and the subject's other facts.

Torch-free, so that costs can be estimated and datasets checked without a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from errata.data.case import Case

if TYPE_CHECKING:
    from errata.patches.edited_model import EditedModel

PROMPT_KINDS = ("efficacy", "paraphrase", "neighbourhood")
"""The kinds of prompt that every benchmark has: the edit, its paraphrases, its neighbours."""
SAME_SUBJECT = "same_subject"
"""Other facts about the edited subject, in datasets that have them."""


class Prompt(NamedTuple):
    """A prompt of a case and the answers that are compared after it."""

    kind: str
    text: str
    new: str
    """The edit's target."""
    true: str | None
    """The answer that should stay; None if unknown."""
    own: bool
    """Whether `true` is this prompt's own answer, so that `new` does not compete with it."""

    @property
    def right(self) -> str | None:
        """The correct answer after this prompt."""
        return self.new if is_new_right(self.kind) else self.true


def is_new_right(kind: str) -> bool:
    """Whether the new target is the correct answer to prompts of a kind."""
    return kind in ("efficacy", "paraphrase")


def inactive_note(edited: EditedModel, what: str) -> str | None:
    """Return a note that prompt patches do not act on `what`; None if none is on the stack."""
    count = len(edited.prompt_patches)
    if not count:
        return None
    patches = "1 prompt patch does" if count == 1 else f"{count} prompt patches do"
    return f"{patches} not act on {what}, which are not prompts"


def prompts_of(case: Case) -> list[Prompt]:
    """Return every prompt of a case, kind by kind."""
    new, true = case.request.target, case.target_true
    prompts = [Prompt("efficacy", case.request.text, new, true, False)]
    prompts += [Prompt("paraphrase", text, new, true, False) for text in case.paraphrases]
    answers = case.neighbour_answers or (true,) * len(case.neighbours)
    prompts += [
        Prompt("neighbourhood", text, new, answer, answer != true)
        for text, answer in zip(case.neighbours, answers, strict=True)
    ]
    prompts += [
        Prompt(SAME_SUBJECT, fact.prompt, new, fact.answer, True) for fact in case.same_subject
    ]
    return prompts
