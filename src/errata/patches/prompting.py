"""How a prompt reaches an edited model: after a context, through prompt patches, in a chat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from errata.patches.base import Edit
from errata.patches.chat_form import ChatForm
from errata.patches.prompt_patch import PromptPatch


class Prompting:
    """The part of `EditedModel` that renders prompts."""

    tokenizer: PreTrainedTokenizerBase
    chat: ChatForm | None
    """How prompts are asked: as messages in a chat, or as they are (None)."""
    context: str
    """Text put before every prompt, such as a fact in words."""
    _shown: list[Edit]
    """The edits in effect."""

    @property
    def prompt_patches(self) -> list[PromptPatch]:
        """The prompt patches that act now, in order."""
        return [patch for patch in self._shown if isinstance(patch, PromptPatch)]

    def with_prompt_patches(self, prompt: str) -> str:
        """Return a prompt with all prompt patches applied, the last one outermost."""
        for patch in self.prompt_patches:
            prompt = patch.render(prompt)
        return prompt

    def rendered(self, prompt: str) -> str:
        """Return a prompt as the model receives it."""
        prompt = self.with_prompt_patches(prompt)
        if self.chat is None:
            return self.context + prompt
        return self.chat.render(prompt, self.tokenizer, self.context)

    def rendered_span(self, prompt: str, span: tuple[int, int]) -> tuple[int, int]:
        """Return where a character range of a prompt is in the rendered prompt."""
        shown, offset = self.with_prompt_patches(prompt), sum(p.offset for p in self.prompt_patches)
        if self.chat is None:
            offset += len(self.context)
        else:
            offset += self.chat.offset(shown, self.tokenizer, self.context)
        return span[0] + offset, span[1] + offset

    def following(self, prompt: str, answer: str) -> str:
        """Return an answer with its separator as it follows the rendered prompt."""
        prompt = self.with_prompt_patches(prompt)
        return answer if self.chat is None else self.chat.following(prompt, answer)

    @contextmanager
    def asked(self, chat: ChatForm | None) -> Iterator[None]:
        """Ask prompts in another form within a `with` block."""
        before, self.chat = self.chat, chat
        try:
            yield
        finally:
            self.chat = before

    @contextmanager
    def told(self, context: str) -> Iterator[None]:
        """Put a text before every prompt within a `with` block.

        In a chat it is part of the message, which the reply does not repeat.
        """
        before, self.context = self.context, context
        try:
            yield
        finally:
            self.context = before
