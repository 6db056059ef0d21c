"""Editing from Python: a method with settings for this model, its second moments, and the edit.

`edit` does everything for programs; runs go through `prepare` and `Method.edit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.errors import ErrataError
from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.data.corpus import Corpus
from errata.data.request import EditRequest, check_batch
from errata.methods import Method, method_named
from errata.methods.moments import moments_for
from errata.methods.presets import settings_for
from errata.models.families import check_editable
from errata.patches.base import Edit
from errata.patches.edited_model import EditedModel
from errata.statistics.second_moment import SecondMoment
from errata.statistics.store import Store, default_store


class Prepared(NamedTuple):
    """A method ready to edit one model."""

    method: Method
    moments: Mapping[int, SecondMoment]
    facts: tuple[str, ...]
    """The sources of settings and moments."""
    warnings: tuple[str, ...]
    """What a user should know before trusting the result."""


def prepare(
    edited: EditedModel,
    method: type[Method],
    settings: Mapping[str, Any],
    *,
    preset: Path | None = None,
    store: Store | None = None,
    corpus: Corpus | str | None = None,
    tokens: int | None = None,
    progress: Progress = no_progress,
    say: Say = say_nothing,
) -> Prepared:
    """Resolve a method's settings for this model and find or compute the moments it needs.

    Settings come from the file `preset` or the model's preset, overridden by `settings`. Raises
    `ErrataError` for a model that cannot be edited, for invalid settings, and where moments are
    needed but neither stored nor to be computed.
    """
    check_editable(edited.model)
    settled, source, warnings = settings_for(method, edited, settings, preset)
    try:
        moments, measured = moments_for(edited, settled, store, corpus, tokens, progress, say)
    except ErrataError as error:  # which blocks are a guess matters for what to compute
        raise ErrataError(error.message, *error.hints, *warnings) from None
    for moment in moments.values():
        settled.check(moment)
    own, blocks = ", ".join(_names(settings)), ",".join(map(str, settled.edited_blocks))
    fact = f"settings: {source}{f', but for {own}' if own else ''}"
    fact += f"; blocks {blocks}" if blocks else ""
    return Prepared(settled, moments, (fact, *measured), warnings)


def _names(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of settings, of nested ones their own."""
    for name, value in settings.items():
        yield from _names(value) if isinstance(value, Mapping) else (name,)


def compute_edit(
    edited: EditedModel,
    requests: Sequence[EditRequest],
    method: Method,
    *,
    moments: Mapping[int, SecondMoment],
    command: str | None = None,
) -> Edit:
    """Return the edit that makes the model answer `requests`, without applying it.

    `moments` holds the second moment of each block in `method.moment_blocks`. Raises
    `ErrataError` for a model that cannot be edited, for requests that contradict each other and
    for missing moments.
    """
    check_editable(edited.model)
    notes = check_batch(requests)
    return method.edit(edited, requests, moments=moments, notes=notes, command=command)


def edit(
    edited: EditedModel,
    requests: Sequence[EditRequest] | EditRequest,
    method: str = "memit",
    *,
    preset: str | Path | None = None,
    store: Store | None = None,
    corpus: Corpus | str | None = None,
    tokens: int | None = None,
    **settings: Any,
) -> Edit:
    """Make a model answer one or more requests; the edit is applied to the model and returned.

    `settings` are those of the method, `preset` is a file of `errata calibrate`. `corpus` is text
    for the second moments or its name, of which `tokens` tokens are used (see
    `data.corpus.read_corpus`); second moments are found and stored in `store`, by default the one
    that `errata stats` fills.
    """
    requests = [requests] if isinstance(requests, EditRequest) else requests
    notes = check_batch(requests)
    ready = prepare(
        edited,
        method_named(method),
        settings,
        preset=None if preset is None else Path(preset),
        store=default_store() if store is None else store,
        corpus=corpus,
        tokens=tokens,
    )
    patch = ready.method.edit(edited, requests, moments=ready.moments, notes=notes)
    edited.apply(patch)
    return patch
