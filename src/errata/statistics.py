"""Second moments on disk: found by what they were measured on, measured when asked for.

A store is a folder. A moment is looked up under the base's weights, the tokenizer, the corpus
and the number of tokens, and never taken for another. Text comes from the demo's world, from
files, or from a Hugging Face dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.demo import WORLD_DIR
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


@dataclass(frozen=True)
class Corpus:
    """Text to measure statistics on."""

    name: str
    texts: Sequence[str]

    @property
    def digest(self) -> str:
        """Hash of the text."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]


def read_corpus(name: str) -> Corpus:
    """Read a corpus: `demo`, a .txt file (a text a line), a .jsonl file (`text`), hf:NAME:CONFIG.

    Raises `ErrataError` for one that cannot be read or holds no text.
    """
    if name == "demo":
        texts = _file_texts(WORLD_DIR / "text.jsonl")
    elif name.startswith("hf:"):
        texts = _hub_texts(*name.removeprefix("hf:").split(":")[:2])
    else:
        texts = _file_texts(Path(name))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ErrataError(f"the corpus {name} holds no text")
    return Corpus(name, texts)


def _file_texts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        if path.suffix == ".jsonl":
            return [_text_of(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ErrataError(
            f"cannot read the corpus {path}: {error}",
            "give a .txt file with a text per line, a .jsonl file with `text` in every record, "
            "or hf:DATASET:CONFIG",
        ) from None
    return lines


def _text_of(record: Any) -> str:
    if not isinstance(record["text"], str):
        raise TypeError(f"`text` is not text but {record['text']!r:.40}")
    return record["text"]


def _hub_texts(dataset: str, config: str | None = None) -> list[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ErrataError(
            "reading Hub datasets needs an extra", "pip install 'errata[tune]'"
        ) from None
    try:
        return list(load_dataset(dataset, config, split="train")["text"])
    except Exception as error:
        raise ErrataError(
            f"cannot load the dataset {dataset}: {error}", "offline, give a text file instead"
        ) from None


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
        missing = [block for block in blocks if not paths[block].exists()]
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


def moments_for(
    edited: EditedModel,
    method: ClosedForm,
    store: Store | None,
    corpus: str | None = None,
    tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Mapping[int, SecondMoment], list[str]]:
    """Find or measure the moments that a method needs; also return a line that says which.

    Never hours of it unasked: without a corpus only what is stored is used (the demo brings
    its own text); with one, a quick estimate is made unless `tokens` says otherwise.
    """
    blocks = method.edited_blocks if method.needs_moment else ()
    if not blocks:
        return {}, []
    if corpus is None and edited.name != "demo":
        stored = None if store is None else store.best(edited, blocks)
        if stored is not None:
            fewest = min(moment.count for moment in stored.values())
            return stored, [f"second moment: stored, {fewest} tokens"]
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
    quick = edited.name != "demo" and tokens is None
    name = corpus or "demo"
    limit = quick_tokens(edited, blocks) if quick else tokens
    get = measured if store is None else store.get
    moments = get(edited, read_corpus(name), blocks, tokens=limit, progress=progress)
    fewest = min(moment.count for moment in moments.values())
    label = "quick estimate, " if quick else ""
    return moments, [f"second moment: {label}{fewest} tokens of {name}"]


def quick_tokens(edited: EditedModel, blocks: Sequence[int]) -> int:
    """Return how many tokens a quick estimate takes: a few per dimension of the widest key."""
    family = family_of(edited.model)
    widths = [width_of(family.write(edited.model, block)) for block in blocks]
    return QUICK_TOKENS_PER_DIMENSION * max(widths)
