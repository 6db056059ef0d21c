"""`ChatForm`: prompts as messages of a user, in the chat template of the tokenizer.

A question is a message, and the answer is the reply. A statement that lacks its end is a message
too, and the reply repeats it before the answer, as chat models do by themselves: so the answer
follows the same words as in plain text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.data.templates import chat_prompt

PROBE = "x"
"""A message by which the place of messages in the template is found."""
SAMPLE = "Where is 'it'?"
"""A message that a template should leave as it is."""
QUESTION = ("?", "\uff1f", "\u061f")
"""Question marks: Latin, full-width, Arabic."""


@dataclass(frozen=True)
class ChatForm:
    """A way of asking: in a chat that begins with the prompt."""

    system: str | None = None
    """The system message (default: the template's own)."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Arguments of the template, such as `enable_thinking`."""

    def is_usable(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether there is a template that takes a message and leaves it as it is."""
        try:
            return SAMPLE in self._message(SAMPLE, tokenizer)
        except ErrataError:
            return False

    def render(self, prompt: str, tokenizer: PreTrainedTokenizerBase, context: str = "") -> str:
        """Return a prompt as message and, unless it is a question, as the beginning of the reply.

        `context` is put before the message alone. Raises `ErrataError` if there is no template,
        or it fails.
        """
        message = self._message(context + prompt, tokenizer)
        return message + ("" if is_question(prompt) else prompt)

    def offset(self, prompt: str, tokenizer: PreTrainedTokenizerBase, context: str = "") -> int:
        """Return where the prompt stands last in a rendered prompt, in characters."""
        if not is_question(prompt):
            return len(self._message(context + prompt, tokenizer))
        one, other = (self._message(context + each + PROBE, tokenizer) for each in ("", PROBE))
        pairs = enumerate(zip(one, other, strict=False))
        return next(place for place, (a, b) in pairs if a != b) - len(PROBE)

    def following(self, prompt: str, answer: str) -> str:
        """Return an answer with its separator as it follows the rendered prompt."""
        return answer.lstrip() if is_question(prompt) else answer

    def _message(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the template up to the reply, with the prompt as the user's message."""
        if not tokenizer.chat_template:
            raise ErrataError(
                "this tokenizer has no chat template", "ask in plain text: --template none"
            )
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns.append({"role": "user", "content": prompt})
        try:
            return chat_prompt(turns, tokenizer, **dict(self.arguments))
        except Exception as error:  # templates raise errors of their own
            raise ErrataError(
                f"the chat template cannot be used: {str(error).splitlines()[0]}",
                "some templates take no system message (--system), or need other arguments",
            ) from None


def is_question(prompt: str) -> bool:
    """Whether a prompt ends in a question mark."""
    return prompt.rstrip().endswith(QUESTION)
