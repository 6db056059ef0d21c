"""The store of second moments: found by what they were measured on, measured when asked for.

A store is a folder. A moment is looked up under the base's weights, the tokenizer, the corpus
and the number of tokens, and never taken for another. A lock per measurement keeps two
processes from doing the same work, and a file of sums on the way lets a killed one go on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from errata.core.distributed import ALONE, Ranks
from errata.core.errors import ErrataError
from errata.core.files import require_space
from errata.core.locks import locked
from errata.core.places import moments_folder
from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.data.corpus import Corpus
from errata.models.families import family_of
from errata.models.identity import same_weights, tokenizer_hash
from errata.models.precision import solving_device
from errata.patches.edited_model import EditedModel
from errata.statistics.accumulate import Checkpoint
from errata.statistics.cost import MomentCost, pass_cost_of, seconds_of
from errata.statistics.measure import measure
from errata.statistics.second_moment import SecondMoment, SecondMomentIdentity, read_header
from errata.statistics.text import Text, readable, text_of

STALE_DAYS = 14
"""After so many days without a write, the checkpoint of a measurement counts as abandoned."""


class Forecast(NamedTuple):
    """What `Store.get` would do."""

    blocks: tuple[int, ...]
    """Blocks that are not stored."""
    tokens: int
    cost: MomentCost
    seconds: float
    """Measured on one batch and counted up."""


class StoredMoment(NamedTuple):
    """What the header of a stored moment says."""

    path: Path
    identity: SecondMomentIdentity | None
    """How it was measured; None where that is not recorded."""
    tokens: int
    """Tokens that went into the mean."""
    bytes: int
    """Size of the file."""


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
        identities = _identities(edited, corpus, blocks, tokens, length)
        lacking = partial(self._lacking, identities)
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
            block: SecondMoment.load(self._found(identity), identity).to(device)
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
        part = f"-{listed}.{ranks.rank}of{ranks.world}.partial"
        sums = Checkpoint(home / f".{_pass_of(wanted)}{part}", say=say)
        begun = home / f".{_pass_of({b: each.old for b, each in wanted.items()})}{part}"
        if begun.exists() and not sums.path.exists():  # by a version with the old form of the hash
            begun.replace(sums.path)
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
        if ranks.rank == 0:
            self._remove_stale(home, wanted)

    def _remove_stale(self, home: Path, wanted: Mapping[int, SecondMomentIdentity]) -> None:
        """Remove checkpoints that can no longer be resumed; the caller holds the pass's lock.

        Of this pass: those of blocks that are stored by now, which are not measured again in the
        same combination. Of others: those that nothing has written for `STALE_DAYS`.
        """
        stored, ours = {str(block) for block in wanted}, f".{_pass_of(wanted)}-"
        for path in home.glob(".*.partial"):
            with suppress(OSError):
                if path.name.startswith(ours):
                    stale = bool(
                        stored & set(path.name.removeprefix(ours).split(".")[0].split("-"))
                    )
                else:
                    stale = time.time() - path.stat().st_mtime > STALE_DAYS * 86400
                if stale:
                    path.unlink()

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
        return self._lacking(_identities(edited, corpus, blocks, tokens, readable(edited, length)))

    def headers(self) -> list[StoredMoment]:
        """Return what the store holds; only the files' headers are read, no matrix."""
        found = []
        for path in sorted(self.folder.glob("*/*.safetensors")):
            try:
                header = read_header(path)
                found.append(
                    StoredMoment(path, header.identity, header.tokens, path.stat().st_size)
                )
            except (ErrataError, OSError):
                continue
        return found

    def stored(self) -> list[tuple[Path, SecondMoment]]:
        """Return all readable moments with their paths."""
        found = []
        for path in sorted(self.folder.glob("*/*.safetensors")):
            try:
                found.append((path, SecondMoment.load(path)))
            except ErrataError:
                continue
        return found

    def find(
        self, edited: EditedModel, blocks: Sequence[int]
    ) -> dict[int, list[StoredMoment]] | None:
        """Return, per block, this model's stored moments, most tokens first; None if one lacks.

        Only headers are read.
        """
        weights, tokenizer = edited.base.weights, tokenizer_hash(edited.tokenizer)
        ours = [
            header
            for header in self.headers()
            if header.identity is not None
            and header.identity.tokenizer == tokenizer
            and same_weights(header.identity.weights, weights)
        ]
        ours.sort(key=lambda header: header.tokens, reverse=True)
        found = {}
        for block in blocks:
            name = family_of(edited.model).weight_name(block)
            found[block] = [each for each in ours if each.identity and each.identity.weight == name]
        return found if all(found.values()) else None

    def best(self, edited: EditedModel, blocks: Sequence[int]) -> dict[int, SecondMoment] | None:
        """Return, per block, this model's stored moment with most tokens; None if one lacks.

        A file whose matrix is damaged is passed over.
        """
        found, best = self.find(edited, blocks), {}
        device = solving_device(edited.model.device)
        for block, headers in (found or {}).items():
            for header in headers:
                with suppress(ErrataError):
                    best[block] = SecondMoment.load(header.path, header.identity).to(device)
                    break
        return best if found and len(best) == len(found) else None

    def _lacking(self, identities: Mapping[int, SecondMomentIdentity]) -> list[int]:
        return [block for block, each in identities.items() if not self._found(each).exists()]

    def _found(self, identity: SecondMomentIdentity) -> Path:
        """Return where a moment is, which may have been stored under the old form of the hash."""
        path, old = self._path(identity), self._path(identity.old)
        return old if old.exists() and not path.exists() else path

    def _path(self, identity: SecondMomentIdentity) -> Path:
        return (
            self.folder / identity.weights[:16] / f"{identity.weight}-{identity.digest}.safetensors"
        )


def _identities(
    edited: EditedModel, corpus: Corpus, blocks: Sequence[int], tokens: int | None, length: int
) -> dict[int, SecondMomentIdentity]:
    """Return the identity of each block's moment; model, tokenizer and corpus are hashed once."""
    family, tokenizer = family_of(edited.model), tokenizer_hash(edited.tokenizer)
    return {
        block: SecondMomentIdentity(
            weights=edited.base.weights,
            tokenizer=tokenizer,
            corpus=corpus.digest,
            tokens=tokens,
            length=length,
            weight=family.weight_name(block),
            dtype=str(edited.model.dtype).removeprefix("torch."),
        )
        for block in blocks
    }


def default_store() -> Store:
    """Return the store that programs and the command line share."""
    return Store(moments_folder())


def _pass_of(identities: Mapping[int, SecondMomentIdentity]) -> str:
    """Name a measurement, whichever blocks it is of."""
    return next(iter(identities.values())).with_values(weight="").digest
