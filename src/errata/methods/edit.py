"""Getting ready to edit: a method with settings for this model, and the moments it needs.

`edit` is the short way for programs; the command line goes through `prepare` as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from errata.core.errors import ErrataError
from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.data.request import EditRequest, check_batch
from errata.methods import ClosedForm, method_named
from errata.methods.closed_form.moments import moments_for
from errata.methods.presets import resolve_settings
from errata.models.families import family_of
from errata.patches.edited_model import EditedModel
from errata.patches.patch import Patch
from errata.statistics.second_moment import SecondMoment
from errata.statistics.store import Store


class Prepared(NamedTuple):
    """A method ready to be run on one model."""

    method: ClosedForm
    moments: Mapping[int, SecondMoment]
    facts: tuple[str, ...]
    """Where settings and moments come from."""
    warnings: tuple[str, ...]
    """What a user should know before trusting the result."""


def prepare(
    edited: EditedModel,
    method: type[ClosedForm],
    settings: Mapping[str, Any],
    *,
    store: Store | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
    progress: Progress = no_progress,
    say: Say = say_nothing,
) -> Prepared:
    """Settle a method's settings for this model and find or measure the moments it needs.

    Settings come from the model's preset with `settings` on top. Raises `ErrataError` for
    wrong settings, and where moments are needed but neither stored nor to be measured.
    """
    count = family_of(edited.model).block_count(edited.model)
    settled, source, warnings = resolve_settings(method, edited.name, count, dict(settings))
    try:
        moments, measured = moments_for(edited, settled, store, corpus, tokens, progress, say)
    except ErrataError as error:  # whoever goes and measures should know what of it is a guess
        raise ErrataError(error.message, *error.hints, *warnings) from None
    for moment in moments.values():
        settled.check(moment)
    blocks = ",".join(str(block) for block in settled.edited_blocks)
    own = ", ".join(_names(settings))
    told = f"settings: {source}{f', but for {own}' if own else ''}; blocks {blocks}"
    return Prepared(settled, moments, (told, *measured), warnings)


def _names(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of settings, of those within others their own."""
    for name, value in settings.items():
        yield from _names(value) if isinstance(value, Mapping) else (name,)


def edit(
    edited: EditedModel,
    requests: Sequence[EditRequest] | EditRequest,
    method: str = "memit",
    *,
    store: Store | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
    **settings: Any,
) -> Patch:
    """Make a model answer one request or many; the patch goes on top of its stack and is returned.

    `settings` are those of the method; `corpus` is text for the second moment, of which
    `tokens` tokens are read (see `statistics.read_corpus`); `store` keeps and finds moments.
    """
    requests = [requests] if isinstance(requests, EditRequest) else requests
    check_batch(requests)
    ready = prepare(
        edited, method_named(method), settings, store=store, corpus=corpus, tokens=tokens
    )
    return edited.edit(requests, ready.method, moments=ready.moments)
