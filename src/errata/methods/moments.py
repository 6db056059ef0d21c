"""Choosing the second moments for a method: stored ones, or an estimate on a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from errata.core.errors import ErrataError, Hint
from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.data.corpus import Corpus, read_corpus
from errata.methods.base import Method
from errata.models.families import family_of, width_of
from errata.patches.edited_model import EditedModel
from errata.statistics.second_moment import TOKENS_PER_DIMENSION, SecondMoment
from errata.statistics.store import Store
from errata.statistics.text import measured

QUICK_TOKENS_PER_DIMENSION = 5
"""Tokens per key dimension of a quick estimate (arXiv 2506.04226 uses 2 to 10)."""


class Wanted(NamedTuple):
    """The moments that a method needs, and the corpus to compute them on."""

    blocks: tuple[int, ...]
    corpus: Corpus | str | None
    """None: stored moments are used."""
    tokens: int | None
    quick: bool
    """Whether they are a quick estimate."""


def moments_wanted(
    edited: EditedModel,
    method: Method,
    store: Store | None,
    corpus: Corpus | str | None = None,
    tokens: int | None = None,
    blocks: Sequence[int] | None = None,
) -> Wanted:
    """Decide which moments to use for a method's blocks, or for `blocks`, computing none.

    Without a corpus only stored moments are used (the demo has its own text), so that hours of
    work never start unasked; with one, a quick estimate is made unless `tokens` is given.
    Raises `ErrataError` where moments are needed but neither stored nor to be computed.
    """
    if not method.moment_blocks:
        return Wanted((), None, None, False)
    blocks = tuple(method.moment_blocks if blocks is None else blocks)
    if corpus is not None or edited.name == "demo":
        quick = edited.name != "demo" and tokens is None
        limit = quick_tokens(edited, blocks) if quick else tokens
        return Wanted(blocks, corpus or "demo", limit, quick)
    if store is not None and store.find(edited, blocks) is not None:
        return Wanted(blocks, None, None, False)
    listed = ",".join(str(block) for block in blocks)
    hints = [
        f"measure them once: errata stats {edited.name} --blocks {listed} --corpus FILE.txt",
        Hint(
            'or make a quick estimate now: errata.edit(…, corpus="FILE.txt")',
            "or make a quick estimate now: add --corpus FILE.txt to this command",
        ),
    ]
    if method.moments_hint is not None:
        hints.append(method.moments_hint)
    raise ErrataError(
        f"{method.label} needs second moments of block{'s' * (len(blocks) != 1)} {listed}; "
        f"none are stored for {edited.name}",
        *hints,
    )


def moments_for(
    edited: EditedModel,
    method: Method,
    store: Store | None,
    corpus: Corpus | str | None = None,
    tokens: int | None = None,
    progress: Progress = no_progress,
    say: Say = say_nothing,
    blocks: Sequence[int] | None = None,
) -> tuple[Mapping[int, SecondMoment], list[str]]:
    """Load or compute the moments that a method needs; also return lines about their source.

    The second line reports the convergence of an estimate. See `moments_wanted` for the choice.
    """
    wanted = moments_wanted(edited, method, store, corpus, tokens, blocks)
    if not wanted.blocks:
        return {}, []
    if wanted.corpus is None:
        stored = None if store is None else store.best(edited, wanted.blocks)
        assert stored is not None, wanted
        fewest = min(moment.count for moment in stored.values())
        return stored, [f"second moment: stored, {fewest} tokens", *convergence_lines(stored)]
    get = measured if store is None else store.get
    text = read_corpus(wanted.corpus)
    moments = get(edited, text, wanted.blocks, tokens=wanted.tokens, progress=progress, say=say)
    fewest = min(moment.count for moment in moments.values())
    label = "quick estimate, " if wanted.quick else ""
    line = f"second moment: {label}{fewest} tokens of {text.name}"
    return moments, [line, *convergence_lines(moments)]


def shortages(moments: Mapping[int, SecondMoment]) -> list[str]:
    """Return one line per limitation of second moments computed on too few tokens."""
    found = []
    for moment in moments.values():
        width = moment.matrix.shape[0]
        least = TOKENS_PER_DIMENSION * width
        if is_singular(moment):
            found.append(
                f"the second moment of {moment.count} tokens is singular: its rank is "
                f"{moment.rank} of {width}; ROME and MEMIT need varied text of "
                f"more than {width} tokens, AlphaEdit of at least {least}"
            )
        elif few := moment.fewer_than(least):
            found.append(f"{few} are too few for AlphaEdit, which needs at least {least}")
    return list(dict.fromkeys(found))


def is_singular(moment: SecondMoment) -> bool:
    """Return whether the moment cannot be inverted."""
    return moment.rank < moment.matrix.shape[0]


def convergence_lines(moments: Mapping[int, SecondMoment]) -> list[str]:
    """Report the convergence of the least converged moment; empty where none is known."""
    known = {b: m.convergence for b, m in moments.items() if m.convergence is not None}
    if not known:
        return []
    worst = max(known, key=lambda block: (known[block].moved is None, known[block].moved or 0.0))
    return [f"second moment of block {worst}: {known[worst].sentence()}"]


def quick_tokens(edited: EditedModel, blocks: Sequence[int]) -> int:
    """Return the tokens of a quick estimate: a few per dimension of the widest key."""
    family = family_of(edited.model)
    widths = [width_of(family.mlp_out(edited.model, block)) for block in blocks]
    return QUICK_TOKENS_PER_DIMENSION * max(widths)
