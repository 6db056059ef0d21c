"""The store of second moments: looked up by identity, measured on demand.

A store is a folder. A moment is identified by the base model's weights, the tokenizer, the corpus
and the number of tokens, among others (see `SecondMomentIdentity`). A lock per measurement keeps
two processes from doing the same work; interrupted measurements resume from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from errata.assets import MOMENTS_DIR
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
from errata.statistics.leftovers import remove_abandoned, remove_unfinished
from errata.statistics.measure import measure
from errata.statistics.moment_file import SecondMomentIdentity, read_header
from errata.statistics.second_moment import SecondMoment
from errata.statistics.text import Text, readable, text_of


class Forecast(NamedTuple):
    """The work and cost of `Store.get`."""

    blocks: tuple[int, ...]
    """Blocks without a stored moment."""
    tokens: int
    cost: MomentCost
    seconds: float
    """Estimated from one batch."""


class StoredMoment(NamedTuple):
    """A stored moment, as described by its file's header."""

    path: Path
    identity: SecondMomentIdentity | None
    """How it was measured; None if not recorded."""
    tokens: int
    """Number of tokens in the mean."""
    bytes: int
    """Size of the file in bytes."""


@dataclass(frozen=True)
class Store:
    """A folder of second moments, and those that ship with errata, which are only read."""

    folder: Path
    shipped: Path = MOMENTS_DIR

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

        `tokens` limits the corpus (None: all of it); each text is truncated to `length` tokens.
        Interrupted measurements resume; one that another process runs is waited for. `say` reports
        both. Of several `ranks`, the first stores and returns the moments; the others return an
        empty dict, as they may not have access to its disk.
        """
        length = readable(edited, length)
        identities = _identities(edited, corpus, blocks, tokens, length)
        missing_here = partial(self._missing, identities)
        if ranks.agree(missing_here()):
            lock = self._path(identities[blocks[0]]).parent / f".{_pass_name(identities)}.lock"
            wait = "another process is measuring these second moments; waiting for it"
            with ExitStack() as stack:
                if ranks.rank == 0:
                    stack.enter_context(locked(lock, lambda: say(wait)))
                    names = [self._path(identity).name for identity in identities.values()]
                    remove_unfinished(lock.parent, _pass_name(identities), names)
                missing = ranks.agree(missing_here())
                if missing:
                    text = text_of(edited, corpus, tokens, length)
                    to_measure = {block: identities[block] for block in missing}
                    self._measure(edited, text, to_measure, ranks, progress, say)
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
        identities: Mapping[int, SecondMomentIdentity],
        ranks: Ranks,
        progress: Progress,
        say: Say,
    ) -> None:
        """Measure and store the moments of blocks, with one checkpoint file per rank meanwhile."""
        blocks = list(identities)
        cost = pass_cost_of(edited.model, text.rows, blocks, halves=text.held_out is not None)
        folder = self._path(identities[blocks[0]]).parent
        if ranks.rank == 0:
            require_space(folder, cost.disk + cost.scratch * ranks.world, "second moments")
        suffix = f"-{'-'.join(map(str, blocks))}.{ranks.rank}of{ranks.world}.partial"
        checkpoint = Checkpoint(folder / f".{_pass_name(identities)}{suffix}", say=say)
        old_identities = {block: identity.old for block, identity in identities.items()}
        old = folder / f".{_pass_name(old_identities)}{suffix}"
        if old.exists() and not checkpoint.path.exists():  # named by the old form of the hash
            old.replace(checkpoint.path)
        with edited.without_patches():
            found = measure(
                edited.model,
                text.rows,
                blocks,
                held_out=text.held_out,
                partial=checkpoint,
                ranks=ranks,
                progress=progress,
            )
        if ranks.rank == 0:
            for block, moment in found.items():
                identity = identities[block]
                replace(moment, identity=identity).save(self._path(identity))
        ranks.wait()
        checkpoint.remove()
        if ranks.rank == 0:
            remove_abandoned(folder, _pass_name(identities), identities)

    def forecast(
        self,
        edited: EditedModel,
        corpus: Corpus,
        blocks: Sequence[int],
        *,
        tokens: int | None = None,
        length: int = 512,
    ) -> Forecast | None:
        """Estimate the cost of `get` by running one batch; None when all moments are stored."""
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
        """Return the blocks whose moments `get` would measure."""
        return self._missing(_identities(edited, corpus, blocks, tokens, readable(edited, length)))

    def headers(self) -> list[StoredMoment]:
        """Return all moments in the folder; only the files' headers are read."""
        return self._headers(self.folder)

    def _headers(self, folder: Path) -> list[StoredMoment]:
        found = []
        for path in sorted(folder.glob("*/*.safetensors")):
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
        """Return, per block, this model's stored moments, most tokens first; only headers are read.

        None when a block has none. Of moments on as many tokens, the folder's come first.
        """
        weights, tokenizer = edited.base.weights, tokenizer_hash(edited.tokenizer)
        of_model = [
            header
            for header in (*self.headers(), *self._headers(self.shipped))
            if header.identity is not None
            and header.identity.tokenizer == tokenizer
            and same_weights(header.identity.weights, weights)
        ]
        of_model.sort(key=lambda header: header.tokens, reverse=True)
        found = {}
        for block in blocks:
            name = family_of(edited.model).weight_name(block)
            found[block] = [one for one in of_model if one.identity and one.identity.weight == name]
        return found if all(found.values()) else None

    def best(self, edited: EditedModel, blocks: Sequence[int]) -> dict[int, SecondMoment] | None:
        """Return, per block, this model's stored moment with the most tokens; None if one has none.

        Damaged files are skipped.
        """
        found, best = self.find(edited, blocks), {}
        device = solving_device(edited.model.device)
        for block, headers in (found or {}).items():
            for header in headers:
                with suppress(ErrataError):
                    best[block] = SecondMoment.load(header.path, header.identity).to(device)
                    break
        return best if found and len(best) == len(found) else None

    def _missing(self, identities: Mapping[int, SecondMomentIdentity]) -> list[int]:
        return [block for block, each in identities.items() if not self._found(each).exists()]

    def _found(self, identity: SecondMomentIdentity) -> Path:
        """Return the file of a moment: its own, one named by the old form of the model's hash, or
        one that ships."""
        path = self._path(identity)
        others = self._path(identity.old), _path(self.shipped, identity)
        return next((each for each in (path, *others) if each.exists()), path)

    def _path(self, identity: SecondMomentIdentity) -> Path:
        return _path(self.folder, identity)


def _path(folder: Path, identity: SecondMomentIdentity) -> Path:
    return folder / identity.weights[:16] / f"{identity.weight}-{identity.digest}.safetensors"


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


def _pass_name(identities: Mapping[int, SecondMomentIdentity]) -> str:
    """Return a name for a measurement that does not depend on its blocks."""
    return next(iter(identities.values())).with_values(weight="").digest
