"""The store of second moments: found by what they were measured on, measured when asked for.

A store is a folder. A moment is looked up under the base's weights, the tokenizer, the corpus
and the number of tokens, and never taken for another. A lock per measurement keeps two
processes from doing the same work, and a file of sums on the way lets a killed one go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from errata.core.distributed import ALONE, Ranks
from errata.core.errors import ErrataError
from errata.core.files import require_space
from errata.core.locks import locked
from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.data.corpus import Corpus
from errata.models.families import family_of, positions_of
from errata.models.identity import tokenizer_hash
from errata.models.precision import solving_device
from errata.patches.edited_model import EditedModel
from errata.statistics.accumulate import Checkpoint, Rows
from errata.statistics.cost import MomentCost, pass_cost_of, seconds_of
from errata.statistics.measure import measure, token_rows
from errata.statistics.second_moment import SecondMoment, SecondMomentIdentity

HELD_OUT_TOKENS = 2048
"""Tokens behind those of an estimate, on whose keys it is looked at how settled it is."""


def readable(edited: EditedModel, length: int) -> int:
    """Return `length`, or fewer tokens where the model cannot read so many."""
    return min(length, positions_of(edited.model))


class Text(NamedTuple):
    """The token rows that a moment is measured on, and some that follow them."""

    rows: Rows
    held_out: Rows | None
    """Text behind the last row, to see how settled the moment is; None for a whole corpus."""


def text_of(edited: EditedModel, corpus: Corpus, tokens: int | None, length: int) -> Text:
    """Encode as much of a corpus as is asked for; see `Store.get`."""
    texts, length = iter(corpus.texts), readable(edited, length)
    rows = token_rows(edited.tokenizer, texts, length, tokens)
    if tokens is None:
        return Text(rows, None)
    return Text(rows, token_rows(edited.tokenizer, texts, length, HELD_OUT_TOKENS))


def measured(
    edited: EditedModel,
    corpus: Corpus,
    blocks: Sequence[int],
    *,
    tokens: int | None = None,
    length: int = 512,
    progress: Progress = no_progress,
    say: Say = say_nothing,
) -> dict[int, SecondMoment]:
    """Measure C of the unedited model at `blocks`; see `Store.get`."""
    rows, held_out = text_of(edited, corpus, tokens, length)
    with edited.without_patches():
        return measure(edited.model, rows, blocks, held_out=held_out, progress=progress)


class Forecast(NamedTuple):
    """What `Store.get` would do."""

    blocks: tuple[int, ...]
    """Blocks that are not stored."""
    tokens: int
    cost: MomentCost
    seconds: float
    """Measured on one batch and counted up."""


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
        ranks: Ranks = ALONE,
        progress: Progress = no_progress,
        say: Say = say_nothing,
    ) -> dict[int, SecondMoment]:
        """Return C of the unedited model per block, measuring those that are not stored.

        `tokens` limits the corpus (None: all of it), `length` is where each text is cut. A
        measurement that was killed goes on where it was; one that another process is at is
        waited for. `say` is told of both. Of several `ranks` the first keeps and returns what all
        have measured; the others return nothing, as they may not see its disk.
        """
        length = readable(edited, length)
        identities = {
            block: self._identity(edited, corpus, block, tokens, length) for block in blocks
        }
        lacking = partial(self.missing, edited, corpus, blocks, tokens=tokens, length=length)
        if ranks.agree(lacking()):
            lock = self._path(identities[blocks[0]]).parent / f".{_pass_of(identities)}.lock"
            wait = "another process is measuring these second moments; waiting for it"
            with ExitStack() as stack:
                if ranks.rank == 0:
                    stack.enter_context(locked(lock, lambda: say(wait)))
                missing = ranks.agree(lacking())
                if missing:
                    text = text_of(edited, corpus, tokens, length)
                    wanted = {block: identities[block] for block in missing}
                    self._measure(edited, text, wanted, ranks, progress, say)
        if ranks.rank > 0:
            return {}
        device = solving_device(edited.model.device)
        return {
            block: SecondMoment.load(self._path(identity), identity).to(device)
            for block, identity in identities.items()
        }

    def _measure(
        self,
        edited: EditedModel,
        text: Text,
        wanted: Mapping[int, SecondMomentIdentity],
        ranks: Ranks,
        progress: Progress,
        say: Say,
    ) -> None:
        """Measure and keep the moments of blocks; the sums are kept on the way, one file a rank."""
        cost = pass_cost_of(edited.model, text.rows, list(wanted), halves=text.held_out is not None)
        home = self._path(next(iter(wanted.values()))).parent
        if ranks.rank == 0:
            require_space(home, cost.disk + cost.scratch * ranks.world, "second moments")
        listed = "-".join(str(block) for block in wanted)
        part = f".{_pass_of(wanted)}-{listed}.{ranks.rank}of{ranks.world}.partial"
        sums = Checkpoint(home / part, say=say)
        with edited.without_patches():
            found = measure(
                edited.model,
                text.rows,
                list(wanted),
                held_out=text.held_out,
                partial=sums,
                ranks=ranks,
                progress=progress,
            )
        if ranks.rank == 0:
            for block, moment in found.items():
                replace(moment, identity=wanted[block]).save(self._path(wanted[block]))
        ranks.wait()
        sums.remove()

    def forecast(
        self,
        edited: EditedModel,
        corpus: Corpus,
        blocks: Sequence[int],
        *,
        tokens: int | None = None,
        length: int = 512,
    ) -> Forecast | None:
        """Say what `get` would cost, running one batch; None when all is stored."""
        missing = self.missing(edited, corpus, blocks, tokens=tokens, length=length)
        if not missing:
            return None
        rows, held_out = text_of(edited, corpus, tokens, length)
        cost = pass_cost_of(edited.model, rows, missing, halves=held_out is not None)
        device = solving_device(edited.model.device)
        seconds = seconds_of(edited.model, rows, missing, device=device)
        return Forecast(tuple(missing), sum(map(len, rows)), cost, seconds)

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
    ) -> SecondMomentIdentity:
        return SecondMomentIdentity(
            weights=edited.base.weights,
            tokenizer=tokenizer_hash(edited.tokenizer),
            corpus=corpus.digest,
            tokens=tokens,
            length=length,
            weight=family_of(edited.model).weight_name(block),
            dtype=str(edited.model.dtype).removeprefix("torch."),
        )

    def _path(self, identity: SecondMomentIdentity) -> Path:
        return (
            self.folder / identity.weights[:16] / f"{identity.weight}-{identity.digest}.safetensors"
        )


def _pass_of(identities: Mapping[int, SecondMomentIdentity]) -> str:
    """Name a measurement, whichever blocks it is of."""
    return next(iter(identities.values())).with_values(weight="").digest
