"""Second moments on disk: found by what they were measured on, measured when asked for.

A store is a folder. A moment is looked up under the base's weights, the tokenizer, the corpus
and the number of tokens, and never taken for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from errata.corpus import Corpus, read_corpus
from errata.errors import ErrataError
from errata.family import family_of, width_of
from errata.identity import tokenizer_hash
from errata.methods.closed_form import ClosedForm
from errata.model import EditedModel
from errata.moment import (
    MomentIdentity,
    SecondMoment,
    measure,
    solving_device,
    token_rows,
)

QUICK_TOKENS_PER_DIMENSION = 5
"""A quick estimate takes this many tokens per dimension of the key (arXiv 2506.04226: 2 to 10)."""


def readable(edited: EditedModel, length: int) -> int:
    """Return `length`, or fewer tokens where the model cannot read so many."""
    return min(length, getattr(edited.model.config, "max_position_embeddings", length))


def measured(
    edited: EditedModel,
    corpus: Corpus,
    blocks: Sequence[int],
    *,
    tokens: int | None = None,
    length: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, SecondMoment]:
    """Measure C of the unedited model at `blocks`; see `Store.get`."""
    rows = token_rows(edited.tokenizer, corpus.texts, readable(edited, length), tokens)
    with edited.without_patches():
        return measure(edited.model, rows, blocks, progress=progress)


@dataclass(frozen=True)
class Store:
    """A folder of second moments."""

    folder: Path

    def get(
        self,
        edited: EditedModel,
        corpus: Corpus,
        blocks: Sequence[int],
        *,
        tokens: int | None = None,
        length: int = 512,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[int, SecondMoment]:
        """Return C of the unedited model per block, measuring those that are not stored.

        `tokens` limits the corpus (None: all of it), `length` is where each text is cut.
        """
        length = readable(edited, length)
        identities = {
            block: self._identity(edited, corpus, block, tokens, length) for block in blocks
        }
        paths = {block: self._path(identity) for block, identity in identities.items()}
        missing = self.missing(edited, corpus, blocks, tokens=tokens, length=length)
        if missing:
            found = measured(
                edited, corpus, missing, tokens=tokens, length=length, progress=progress
            )
            for block, moment in found.items():
                SecondMoment(moment.matrix, moment.count, identities[block]).save(paths[block])
        device = solving_device(edited.model.device)
        return {
            block: SecondMoment.load(paths[block], identities[block]).to(device) for block in blocks
        }

    def missing(
        self,
        edited: EditedModel,
        corpus: Corpus,
        blocks: Sequence[int],
        *,
        tokens: int | None = None,
        length: int = 512,
    ) -> list[int]:
        """Return those of the blocks whose moment `get` would have to measure."""
        length = readable(edited, length)
        return [
            block
            for block in blocks
            if not self._path(self._identity(edited, corpus, block, tokens, length)).exists()
        ]

    def stored(self) -> list[tuple[Path, SecondMoment]]:
        """Return all readable moments with their paths."""
        found = []
        for path in sorted(self.folder.glob("*/*.safetensors")):
            try:
                found.append((path, SecondMoment.load(path)))
            except ErrataError:
                continue
        return found

    def best(self, edited: EditedModel, blocks: Sequence[int]) -> dict[int, SecondMoment] | None:
        """Return, per block, this model's stored moment with most tokens; None if one lacks."""
        base, tokenizer = edited.base.weights, tokenizer_hash(edited.tokenizer)
        device, best = solving_device(edited.model.device), {}
        for block in blocks:
            name = family_of(edited.model).weight_name(block)
            fitting = [
                moment
                for _, moment in self.stored()
                if moment.identity is not None
                and (moment.identity.weights, moment.identity.weight) == (base, name)
                and moment.identity.tokenizer == tokenizer
            ]
            if not fitting:
                return None
            best[block] = max(fitting, key=lambda moment: moment.count).to(device)
        return best

    def _identity(
        self, edited: EditedModel, corpus: Corpus, block: int, tokens: int | None, length: int
    ) -> MomentIdentity:
        return MomentIdentity(
            weights=edited.base.weights,
            tokenizer=tokenizer_hash(edited.tokenizer),
            corpus=corpus.digest,
            tokens=tokens,
            length=length,
            weight=family_of(edited.model).weight_name(block),
            dtype=str(edited.model.dtype).removeprefix("torch."),
        )

    def _path(self, identity: MomentIdentity) -> Path:
        return (
            self.folder / identity.weights[:16] / f"{identity.weight}-{identity.digest}.safetensors"
        )


class Wanted(NamedTuple):
    """The moments that a method needs, and what they are to be measured on."""

    blocks: tuple[int, ...]
    corpus: str | None
    """None: those that are stored are good enough."""
    tokens: int | None
    quick: bool
    """Whether only an estimate is made."""


def moments_wanted(
    edited: EditedModel,
    method: ClosedForm,
    store: Store | None,
    corpus: str | None = None,
    tokens: int | None = None,
) -> Wanted:
    """Decide which moments a method is given, without measuring any.

    Never hours of it unasked: without a corpus only what is stored is used (the demo brings
    its own text); with one, a quick estimate is made unless `tokens` says otherwise. Raises
    `ErrataError` where moments are needed but neither stored nor to be measured.
    """
    blocks = method.edited_blocks if method.needs_moment else ()
    if not blocks:
        return Wanted((), None, None, False)
    if corpus is not None or edited.name == "demo":
        quick = edited.name != "demo" and tokens is None
        limit = quick_tokens(edited, blocks) if quick else tokens
        return Wanted(blocks, corpus or "demo", limit, quick)
    if store is not None and store.best(edited, blocks) is not None:
        return Wanted(blocks, None, None, False)
    listed = ",".join(str(block) for block in blocks)
    hints = [
        f"measure them once: errata stats {edited.name} --blocks {listed} --corpus FILE.txt",
        "or make a quick estimate now: add --corpus FILE.txt to this command",
    ]
    if "second_moment" in type(method).model_fields:
        hints.append("or do without: --no-second-moment")
    raise ErrataError(
        f"{method.label} needs second moments of blocks {listed}; "
        f"none are stored for {edited.name}",
        *hints,
    )


def moments_for(
    edited: EditedModel,
    method: ClosedForm,
    store: Store | None,
    corpus: str | None = None,
    tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Mapping[int, SecondMoment], list[str]]:
    """Find or measure the moments that a method needs; also return a line that says which.

    See `moments_wanted` for what is measured.
    """
    wanted = moments_wanted(edited, method, store, corpus, tokens)
    if not wanted.blocks:
        return {}, []
    if wanted.corpus is None:
        stored = None if store is None else store.best(edited, wanted.blocks)
        assert stored is not None, wanted
        fewest = min(moment.count for moment in stored.values())
        return stored, [f"second moment: stored, {fewest} tokens"]
    get = measured if store is None else store.get
    text = read_corpus(wanted.corpus)
    moments = get(edited, text, wanted.blocks, tokens=wanted.tokens, progress=progress)
    fewest = min(moment.count for moment in moments.values())
    label = "quick estimate, " if wanted.quick else ""
    return moments, [f"second moment: {label}{fewest} tokens of {wanted.corpus}"]


def quick_tokens(edited: EditedModel, blocks: Sequence[int]) -> int:
    """Return how many tokens a quick estimate takes: a few per dimension of the widest key."""
    family = family_of(edited.model)
    widths = [width_of(family.write(edited.model, block)) for block in blocks]
    return QUICK_TOKENS_PER_DIMENSION * max(widths)
