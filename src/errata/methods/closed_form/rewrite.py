"""`Rewrite`: one edit request as rows of token ids, one per context prefix.

How a prompt's tokens, the subject's position and the target's tokens are found is in
`models/tokens.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from transformers import PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.data.request import SLOT, EditRequest
from errata.models.families import positions_of
from errata.models.tokens import Position, TokenRow, encode, position_of, split_target

if TYPE_CHECKING:
    from errata.methods.closed_form.driver import ClosedForm
    from errata.patches.edited_model import EditedModel

Span = tuple[int, int]
Render = Callable[[str, Span], tuple[str, Span]]
"""Returns a rendered prompt, and where a character range of the prompt is in it."""


def as_it_is(text: str, span: Span) -> tuple[str, Span]:
    """Render nothing."""
    return text, span


@dataclass(frozen=True)
class Rewrite:
    """One request in token ids, with and without context prefixes."""

    rows: tuple[TokenRow, ...]
    """Prefix + prompt + target without its last token, per prefix; the bare prompt comes first."""
    essence: TokenRow
    """The essence prompt, whose next-token distribution should not change."""
    keys: tuple[tuple[TokenRow, ...], ...]
    """Groups of rows, the bare one first: the key is the mean over groups of each group's mean."""

    def with_rows(self, other: Self, by_type: bool) -> Self:
        """Add the rows of another form of the request: to the keys as a group, or as more rows."""
        own = self.keys if by_type else self.keys[:1]
        keys = (*own, *other.keys) if by_type else ((*own[0], *other.keys[0]),)
        return replace(self, rows=(*self.rows, *other.rows), keys=keys)


def rewrite_of(
    tokenizer: PreTrainedTokenizerBase,
    request: EditRequest,
    prefixes: Sequence[str],
    *,
    where: Position,
    essence_prompt: str,
    mean_by_type: bool,
    render: Render = as_it_is,
    answer: str | None = None,
) -> Rewrite:
    """Encode one request behind every prefix.

    The bare prompt is always the first row. With `mean_by_type` the bare prompt has the same
    weight in the key as all prefixed ones together (MEMIT); without, all rows have equal weight
    (ROME). `render` is applied last: to prefix and prompt together, and to the essence prompt.
    `answer` is the target as it follows the rendered prompt (default: the request's).
    """
    rows = []
    for prefix in ("", *prefixes):
        text, shift = prefix + request.text, len(prefix)
        text, span = render(text, (request.span[0] + shift, request.span[1] + shift))
        position = position_of(encode(tokenizer, text), span, where)
        prompt, target = split_target(tokenizer, text, answer or request.answer)
        rows.append(TokenRow(prompt + target[:-1], position, target))
    keys = tuple(row.key for row in rows)
    groups = (keys[:1], keys[1:]) if mean_by_type and len(keys) > 1 else (keys,)
    start = essence_prompt.index(SLOT)
    essence = essence_prompt.replace(SLOT, request.subject)
    essence, span = render(essence, (start, start + len(request.subject)))
    encoded = encode(tokenizer, essence)
    place = position_of(encoded, span, where)
    return Rewrite(tuple(rows), TokenRow(encoded.ids, place).key, groups)


def encode_requests(
    method: ClosedForm,
    edited: EditedModel,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    first: int = 1,
) -> list[Rewrite]:
    """Encode requests behind every prefix, as a method needs them (see `ClosedForm.rewrites`).

    A request that is edited in both forms has its message in the chat as one more row.
    """
    by_type = method.place == "block"

    def encoded(request: EditRequest, before: Sequence[str]) -> Rewrite:
        return rewrite_of(
            edited.tokenizer,
            request,
            before,
            where=method.position,
            essence_prompt=method.search.essence_prompt,
            mean_by_type=by_type,
            render=lambda text, span: (edited.rendered(text), edited.rendered_span(text, span)),
            answer=edited.following(request.text, request.answer),
        )

    first_form, *others = method.forms(edited)
    with edited.asked(first_form):
        rewrites = [encoded(request, prefixes) for request in requests]
    for form in others:
        with edited.asked(form):
            more = [encoded(request, ()) for request in requests]
        pairs = zip(rewrites, more, strict=True)
        rewrites = [one.with_rows(other, by_type) for one, other in pairs]
    check_lengths(rewrites, positions_of(edited.model), first)
    return rewrites


def check_lengths(rewrites: Sequence[Rewrite], limit: int, first: int = 1) -> None:
    """Raise `ErrataError` when a request has more tokens than the model's context (`limit`).

    The message counts requests from `first`.
    """
    for number, rewrite in enumerate(rewrites, start=first):
        longest = max(len(row.ids) for row in rewrite.rows)
        if longest > limit:
            raise ErrataError(
                f"request {number} is {longest} tokens long with its prefix and target; "
                f"the model reads {limit}",
                "shorten the prompt, the target or the prefixes",
            )
