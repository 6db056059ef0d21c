"""Prompting several models side by side: base, edited, tuned; single prompts or a conversation.

In a conversation each model sees its own previous answers. Turns are formatted by the tokenizer's
chat template if it has one, otherwise as lines that start with `User:` and `Assistant:`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from errata.data.templates import chat_prompt
from errata.patches.edited_model import EditedModel

SYSTEM, USER, ASSISTANT = "System:", "User:", "Assistant:"


@dataclass
class Speaker:
    """One of the models, with its conversation so far."""

    name: str
    edited: EditedModel
    plain: bool = False
    """Whether its patches are disabled."""
    template: bool = True
    """Whether the tokenizer's chat template is used, if it has one."""
    system: str | None = None
    """System message (default: the template's own)."""
    turns: list[dict[str, str]] = field(default_factory=list)

    def answer(self, prompt: str, max_new_tokens: int) -> str:
        """Continue a prompt."""
        with self._patched():
            return self.edited.generate(prompt, max_new_tokens)

    def asked(self, message: str, max_new_tokens: int) -> str:
        """Answer a message that begins a conversation of its own."""
        self.turns.clear()
        return self.reply(message, max_new_tokens)

    def reply(self, message: str, max_new_tokens: int) -> str:
        """Answer the next message of the conversation."""
        self.turns.append({"role": "user", "content": message})
        with self._patched():  # prompt patches apply to the first message, not to the template
            text = self.edited.generate(self._transcript(), max_new_tokens, render=False)
        if not self._templated:
            text = text.split(f"\n{USER}")[0]
        self.turns.append({"role": "assistant", "content": text.strip()})
        return text

    @property
    def _templated(self) -> bool:
        return self.template and bool(self.edited.tokenizer.chat_template)

    def _patched(self) -> AbstractContextManager[None]:
        """Disable the patches within a `with` block if the speaker is `plain`."""
        return self.edited.without_patches() if self.plain else nullcontext()

    def _transcript(self) -> str:
        """Return the conversation so far as a prompt."""
        message = self.edited.with_prompt_patches(self.turns[0]["content"])
        turns = [{**self.turns[0], "content": message}, *self.turns[1:]]
        if self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        if self._templated:
            return chat_prompt(turns, self.edited.tokenizer)
        labels = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
        lines = [f"{labels[turn['role']]} {turn['content']}" for turn in turns]
        return "\n".join([*lines, ASSISTANT])


def speakers_of(edited: EditedModel, below: EditedModel | None = None) -> list[Speaker]:
    """Return the speakers: the model, without and with its patches if it has any.

    `below` is the edited model on which `edited` was tuned. Then the speakers are `base`,
    `edited` and `tuned` and, if there are patches on top, `edited again`.
    """
    if below is not None:
        found = [Speaker("base", below, plain=True), Speaker("edited", below)]
        found.append(Speaker("tuned", edited, plain=bool(edited.patches)))
        return [*found, Speaker("edited again", edited)] if edited.patches else found
    if edited.patches:
        return [Speaker("before", edited, plain=True), Speaker("after", edited)]
    return [Speaker("answer", edited)]
