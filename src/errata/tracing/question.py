"""A tokenised prompt about a subject, with the answer whose probability is traced.

Without a given answer it is the model's most likely next token, as in the published traces. A given
answer may have several tokens; the model *knows* it if every token is its greedy prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.hooks import frozen, logits_at
from errata.models.tokens import Encoded, answer_ids, encode, position_of


@dataclass(frozen=True)
class Question:
    """A tokenised prompt with its subject and answer."""

    text: str
    ids: tuple[int, ...]
    """Token ids of the prompt, and of the answer without its last token."""
    length: int
    """Number of tokens in the prompt."""
    subject: tuple[int, int]
    """Token range of the subject: start, and one past the end."""
    targets: tuple[int, ...]
    """Token ids of the answer."""
    said: tuple[int, ...]
    """Greedy prediction at each position of the answer, given the answer's preceding tokens."""
    tokens: tuple[str, ...]
    """Display form of the prompt's tokens."""

    @property
    def known(self) -> bool:
        """Whether greedy decoding gives the answer."""
        return self.said == self.targets

    @property
    def spoken(self) -> tuple[int, ...]:
        """The greedy continuation up to and including the first token that differs.

        Later predictions are conditioned on the answer, not on the model's own continuation.
        """
        pairs = enumerate(zip(self.said, self.targets, strict=True), start=1)
        end = next((end for end, (said, target) in pairs if said != target), len(self.said))
        return self.said[:end]


@torch.no_grad()
def ask_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    span: tuple[int, int],
    answer: str | None = None,
) -> Question:
    """Tokenise a prompt and query the model; `span` is the subject's character range in `text`.

    `answer` includes its separator. Raises `ErrataError` if the prompt exceeds the context length.
    """
    encoded = encode(tokenizer, text)
    prompt = encoded.ids
    targets: tuple[int, ...] = ()
    if answer is not None:
        targets = answer_ids(tokenizer, text, prompt, answer)
    ids = prompt + targets[:-1]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and len(ids) > limit:
        raise ErrataError(
            f"the prompt is {len(ids)} tokens long with its answer; the model reads {limit}",
            "shorten it",
        )
    subject = (
        position_of(encoded, span, "subject_first"),
        position_of(encoded, span, "subject_last"),
    )
    rows = torch.tensor([ids], device=model.device)
    keep = torch.zeros_like(rows, dtype=torch.bool)
    keep[:, len(prompt) - 1 :] = True
    with frozen(model):
        logits = logits_at(
            model, keep, input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False
        )
    said = tuple(logits.argmax(-1).tolist())
    return Question(
        text=text,
        ids=ids,
        length=len(prompt),
        subject=(subject[0], subject[1] + 1),
        targets=targets or said,
        said=said,
        tokens=shown_tokens(tokenizer, text, encoded),
    )


def shown_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, encoded: Encoded
) -> tuple[str, ...]:
    """Return the display form of each token: its characters in the text.

    Tokens that form one character together are numbered, as in `東₁ 東₂`; special tokens, which
    have no characters, are shown by name.
    """
    shown = []
    for index, (token, (start, end)) in enumerate(zip(encoded.ids, encoded.offsets, strict=True)):
        if start == end:
            shown.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        piece, span = text[start:end], (start, end)
        same = [i for i, other in enumerate(encoded.offsets) if other == span]
        if len(same) > 1:
            piece += str(1 + same.index(index)).translate(_BELOW)
        shown.append(piece)
    return tuple(shown)


_BELOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
