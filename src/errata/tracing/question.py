"""A question about a subject, in tokens, with the answer whose probability is followed.

Where no answer is given it is the token that the model finds likeliest, as in the published
traces. An answer that is given may have several tokens; the model *knows* it if it would write
every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.models.hooks import frozen, logits_at
from errata.models.tokens import Encoded, encode, position_of, split_target


@dataclass(frozen=True)
class Question:
    """A prompt with its subject, and the answer in tokens."""

    text: str
    ids: tuple[int, ...]
    """The prompt, and the answer without its last token."""
    length: int
    """Tokens of the prompt."""
    subject: tuple[int, int]
    """The subject's first token, and one past its last."""
    targets: tuple[int, ...]
    """The answer."""
    said: tuple[int, ...]
    """What the model finds likeliest at each place of the answer, the answer before it given."""
    tokens: tuple[str, ...]
    """The prompt's tokens as they are shown."""

    @property
    def known(self) -> bool:
        """Whether the model says the answer by itself."""
        return self.said == self.targets

    @property
    def spoken(self) -> tuple[int, ...]:
        """What the model writes by itself, up to the first token that is not the answer's.

        What it finds likeliest behind that follows on the answer, not on what it has written.
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
    """Put a question to a model: `span` are the subject's characters in `text`.

    `answer` comes with its separator. Raises `ErrataError` for a prompt that is too long.
    """
    encoded = encode(tokenizer, text)
    prompt = encoded.ids
    targets: tuple[int, ...] = ()
    if answer is not None:
        _, targets = split_target(tokenizer, text, answer)
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
    """Return each token as a person reads it: its characters in the text.

    Several tokens that make up one character are numbered, as in `東₁ 東₂`; a token without
    characters of its own (a special one) goes by its name.
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
