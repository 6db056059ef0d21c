"""Prompt templates for rows {instruction, input, output}.

`alpaca` is the prompt of Stanford's Alpaca, `llm-adapters` that of AGI-Edgerunners/LLM-Adapters
exactly as its code produces it, with the indentation and a stray comment: the models of the
edit-decay study (arXiv 2511.05852) were tuned and evaluated with it. `chat` is the tokenizer's own
template, `plain` the instruction alone. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from errata.core.errors import ErrataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateName = Literal["auto", "alpaca", "llm-adapters", "chat", "plain"]

_TASK = "Below is an instruction that describes a task"
_PAIRED = ", paired with an input that provides further context"
_WRITE = ". Write a response that appropriately completes the request."
_MARGIN = "\n" + " " * 16


class Asked(NamedTuple):
    """A prompt, and the separator between it and the answer."""

    prompt: str
    separator: str


def resolve_template(name: TemplateName, tokenizer: PreTrainedTokenizerBase) -> TemplateName:
    """Resolve `auto` to the tokenizer's chat template, or to `alpaca` if it has none.

    Raises `ErrataError` for `chat` with a tokenizer that has no chat template.
    """
    has_one = bool(tokenizer.chat_template)
    if name == "auto":
        return "chat" if has_one else "alpaca"
    if name == "chat" and not has_one:
        raise ErrataError(
            "this tokenizer has no chat template", "choose another: --template alpaca, or plain"
        )
    return name


def render_prompt(
    name: TemplateName, instruction: str, context: str, tokenizer: PreTrainedTokenizerBase
) -> Asked:
    """Return the prompt for an instruction and its `input` (may be empty)."""
    name = resolve_template(name, tokenizer)
    if name == "plain":
        return Asked(f"{instruction} {context}".strip(), " ")
    if name == "chat":
        turn = {"role": "user", "content": chat_message(instruction, context)}
        return Asked(chat_prompt([turn], tokenizer), "")
    parts = [f"### Instruction:\n{instruction}"]
    parts += [f"### Input:\n{context}"] if context else []
    head = _TASK + (_PAIRED if context else "") + _WRITE
    if name == "alpaca":
        return Asked("\n\n".join([head, *parts, "### Response:\n"]), "")
    # The published code indents its own lines but not those of the instruction.
    lines = [
        part.replace("Instruction:\n", f"Instruction:{_MARGIN}").replace(
            "Input:\n", f"Input:{_MARGIN}"
        )
        for part in parts
    ]
    body = _MARGIN + f"{_MARGIN}{_MARGIN}".join([*lines, f"### Response:{_MARGIN}"])
    return Asked(f"{head}  # noqa: E501\n{body}", "")


def chat_message(instruction: str, context: str) -> str:
    """Return the user's message for an instruction and its `input` (may be empty)."""
    return f"{instruction}\n\n{context}" if context else instruction


def chat_prompt(
    turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **arguments: Any
) -> str:
    """Render a conversation with the tokenizer's chat template, up to the next answer.

    `arguments` are those of the template. A leading BOS token is removed if encoding the text
    adds it.
    """
    text = str(
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **arguments
        )
    )
    bos = tokenizer.bos_token
    return text.removeprefix(bos) if isinstance(bos, str) and _sets_bos(tokenizer) else text


def _sets_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
