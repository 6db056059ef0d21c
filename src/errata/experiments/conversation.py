"""Talking with several models at once: as it was, edited, tuned; single prompts or a talk.

In a talk each model goes by what it said itself. A tokenizer with a chat template writes the
turns by it; without one they are lines of `User:` and `Assistant:`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from errata.data.templates import chat_prompt
from errata.patches.edited_model import EditedModel

ASKS, ANSWERS = "User:", "Assistant:"


@dataclass
class Speaker:
    """One of the models, with what was said so far."""

    name: str
    edited: EditedModel
    plain: bool = False
    """Whether it speaks without the patches that are on it."""
    turns: list[dict[str, str]] = field(default_factory=list)

    def answer(self, prompt: str, max_new_tokens: int, *, talk: bool = False) -> str:
        """Continue a prompt, or the conversation so far (`talk`), which `prompt` then ignores."""
        as_it_is: AbstractContextManager[None] = (
            self.edited.without_patches() if self.plain else nullcontext()
        )
        with as_it_is:
            if talk:  # prompt patches are applied to the first message, not to the template
                return self.edited.generate(self._told(), max_new_tokens, render=False)
            return self.edited.generate(prompt, max_new_tokens)

    def reply(self, said: str, max_new_tokens: int) -> str:
        """Answer a turn of the talk."""
        self.turns.append({"role": "user", "content": said})
        text = self.answer(said, max_new_tokens, talk=True)
        if not self.edited.tokenizer.chat_template:
            text = text.split(f"\n{ASKS}")[0]
        self.turns.append({"role": "assistant", "content": text.strip()})
        return text

    def _told(self) -> str:
        """Return the talk so far as the model reads it."""
        first = {**self.turns[0], "content": self.edited.rendered(self.turns[0]["content"])}
        turns = [first, *self.turns[1:]]
        if self.edited.tokenizer.chat_template:
            return chat_prompt(turns, self.edited.tokenizer)
        marks = {"user": ASKS, "assistant": ANSWERS}
        lines = [f"{marks[turn['role']]} {turn['content']}" for turn in turns]
        return "\n".join([*lines, ANSWERS])


def speakers_of(edited: EditedModel, below: EditedModel | None = None) -> list[Speaker]:
    """Return who speaks: the model, without and with its patches if there are any.

    `below` is the edited model that `edited` was tuned on; then they are `base`, `edited` and
    `tuned`, and with patches on top of these `edited again`.
    """
    if below is not None:
        found = [Speaker("base", below, plain=True), Speaker("edited", below)]
        found.append(Speaker("tuned", edited, plain=bool(edited.patches)))
        return [*found, Speaker("edited again", edited)] if edited.patches else found
    if edited.patches:
        return [Speaker("before", edited, plain=True), Speaker("after", edited)]
    return [Speaker("answer", edited)]
