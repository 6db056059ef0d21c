"""Datasets of cases: one file per format, one line per dataset in `DATASETS`.

A dataset is given by name or as a file, whose format is that of most of its records.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from errata.assets import WORLD_DIR
from errata.core.errors import ErrataError
from errata.core.settings import describe
from errata.core.text import counted, listed
from errata.data.case import Case
from errata.data.download import fetch, stored_path
from errata.data.formats.counterfact import COUNTERFACT
from errata.data.formats.easyedit import FLAT
from errata.data.formats.known_facts import KNOWN
from errata.data.formats.native import PLAIN
from errata.data.formats.zsre import ZSRE, ZSRE_ALT
from errata.data.records import HUB, SUFFIXES, Format, Record, records_of, unreadable, unused_fields
from errata.data.reference_texts import References, read_references, with_references
from errata.data.unicode_forms import normalised_record

HOME = "https://rome.baulab.info/data/dsets"
MEMIT_HOME = "https://memit.baulab.info/data/dsets"
SNIPPETS = f"{HOME}/attribute_snippets.json"
"""Where CounterFact's reference texts are published (926 MB)."""
SNIPPETS_SHA256 = "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b"
PUBLISHED = "published"
"""The value of `--references` that selects them."""
COUNTERFACT_SHA256 = "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"

FORMATS = (COUNTERFACT, ZSRE, KNOWN, FLAT, PLAIN)
"""Formats, most specific first: the order in which a record is tested."""


class Dataset(NamedTuple):
    """A named dataset."""

    about: str
    source: str
    """A file of the package, or a URL."""
    format: Format
    sha256: str | None = None


DATASETS: dict[str, Dataset] = {
    "demo": Dataset("edits of the demo's world", str(WORLD_DIR / "cases.jsonl"), COUNTERFACT),
    "demo-dev": Dataset(
        "other edits, to choose settings on", str(WORLD_DIR / "cases_dev.jsonl"), COUNTERFACT
    ),
    "demo-zsre": Dataset("questions about the demo's world", str(WORLD_DIR / "zsre.json"), ZSRE),
    "demo-known": Dataset("facts the demo knows", str(WORLD_DIR / "known.json"), KNOWN),
    "counterfact": Dataset(
        "CounterFact, 21,919 edits", f"{HOME}/counterfact.json", COUNTERFACT, COUNTERFACT_SHA256
    ),
    "multi-counterfact": Dataset(
        "CounterFact without contradictions, 20,877 edits",
        f"{MEMIT_HOME}/multi_counterfact.json",
        COUNTERFACT,
    ),
    "zsre": Dataset("MEND's zsRE, true answers", f"{HOME}/zsre_mend_eval.json", ZSRE),
    "zsre-alt": Dataset("MEND's zsRE, wrong answers", f"{HOME}/zsre_mend_eval.json", ZSRE_ALT),
    "known": Dataset("1,209 facts that GPT-2 XL knows", f"{HOME}/known_1000.json", KNOWN),
}
"""The named datasets."""


class Loaded(NamedTuple):
    """Cases read from a dataset."""

    cases: list[Case]
    path: Path
    skipped: tuple[str, ...] = ()
    """One message per skipped record."""
    subjects: tuple[str, ...] = ()
    """Subjects of all valid records in file order, including those not selected."""
    unused: tuple[str, ...] = ()
    """Fields of records that are not used."""


def read_cases(
    name_or_path: str,
    limit: int | None = None,
    offset: int = 0,
    *,
    seed: int | None = None,
    cache: Path | None = None,
    normalise: bool = False,
) -> list[Case]:
    """Return the cases of a named dataset or a file; see `load_cases`."""
    found = load_cases(name_or_path, limit, offset, seed=seed, cache=cache, normalise=normalise)
    return found.cases


def load_cases(
    name_or_path: str,
    limit: int | None = None,
    offset: int = 0,
    *,
    seed: int | None = None,
    skip_invalid: bool = False,
    cache: Path | None = None,
    references: Path | None = None,
    normalise: bool = False,
) -> Loaded:
    """Read a named dataset or a file, shuffle it if a seed is given, then select a range.

    `cache` is the folder for downloaded datasets, `references` a file of reference texts for
    CounterFact's generation tests. Raises `ErrataError` for an unknown name, an unreadable file,
    and invalid records, each with its number (from 1) and field; with `skip_invalid` invalid
    records are skipped and reported. `normalise` gives all texts one Unicode form.
    """
    path, form = locate(name_or_path, cache)
    records = [normalised_record(each) if normalise else each for each in records_of(path)]
    form = form or _format_of(records, path)
    texts = {} if references is None else read_references(references)
    cases, problems = _read(records, form, texts)
    if problems and not (skip_invalid and cases):
        raise ErrataError(
            f"{len(problems)} of {len(records)} records in {path} are not valid:\n"
            + listed(problems),
            "correct them, or skip them with --skip-invalid",
        )
    subjects = tuple(case.request.subject for case in cases)
    if seed is not None:
        random.Random(seed).shuffle(cases)
    chosen = cases[offset:][:limit]
    if not chosen:
        raise ErrataError(
            f"{path} contains {counted(len(cases), 'case')}, so --offset {offset} leaves none",
            "give a smaller offset",
        )
    return Loaded(chosen, path, tuple(problems), subjects, unused_fields(records, form.used))


def is_known(name_or_path: str) -> bool:
    """Whether there is a named dataset or a file of that name."""
    here = os.path.isfile(name_or_path) or name_or_path.startswith(HUB)
    return here or _key(name_or_path) in DATASETS


def _key(name: str) -> str:
    return name.replace("_", "-").lower()


def reference_file(name_or_path: str, cache: Path) -> Path:
    """Return a file of reference texts; `published` downloads CounterFact's if necessary."""
    if name_or_path == PUBLISHED:
        return fetch(SNIPPETS, cache, SNIPPETS_SHA256)
    return Path(name_or_path)


def locate(name_or_path: str, cache: Path | None = None) -> tuple[Path, Format | None]:
    """Return a dataset's file, downloaded if necessary, and its format if known."""
    known = DATASETS.get(_key(name_or_path))
    if known is None:
        if is_known(name_or_path):
            return Path(name_or_path), None
        raise ErrataError(
            f"there is no dataset or file {name_or_path!r}",
            f"known datasets: {', '.join(DATASETS)}",
            f"or give a file ({', '.join(SUFFIXES)}) or hf:DATASET of CounterFact, zsRE, "
            "known facts, or requests",
        )
    if "://" not in known.source:
        return Path(known.source), known.format
    if cache is None:
        raise ErrataError(
            f"{name_or_path} must be downloaded from {known.source}, but there is no cache folder",
            "pass cache=…",
        )
    return fetch(known.source, cache, known.sha256), known.format


def file_here(name: str, cache: Path) -> Path | None:
    """Return the file of a named dataset if it is available offline, else None."""
    source = DATASETS[name].source
    path = stored_path(source, cache) if "://" in source else Path(source)
    return path if path.is_file() else None


def _format_of(records: Sequence[Any], path: Path) -> Format:
    """Return the format of most records; in a tie, the more specific one."""
    objects = [record for record in records if isinstance(record, dict)]
    if not objects:
        raise ErrataError(
            f"{path} contains no records", "give a list of objects, or one object per line (.jsonl)"
        )
    kinds = Counter(kind for record in objects if (kind := _kind_of(record)) is not None)
    # The majority, not the first record: if that one is invalid, the others would be misread.
    return FORMATS[min(kinds, key=lambda kind: (-kinds[kind], kind), default=-1)]


def _kind_of(record: Record) -> int | None:
    """Return the index into `FORMATS` of a record's format; None if it matches none."""
    for kind, form in enumerate(FORMATS):
        if form.fields and all(name in record for name in form.fields):
            return kind
    plain = "request" in record or ("prompt" in record and record.keys() & {"target", "target_new"})
    return FORMATS.index(PLAIN) if plain else None


def _read(
    records: Sequence[Any], form: Format, references: References
) -> tuple[list[Case], list[str]]:
    cases, problems = [], []
    for number, record in enumerate(records, start=1):
        try:
            if isinstance(record, ValueError):
                raise ErrataError(unreadable(record))
            if not isinstance(record, dict):
                raise ErrataError(f"is not a JSON object: {record!r:.60}")
            case = form.case(record, number - 1)
            cases.append(with_references(case, record, references) if references else case)
        except ValidationError as error:
            problems.append(f"record {number}:\n{describe(error)}")
        except ErrataError as error:
            problems.append(f"record {number}: {error.message}")
    return cases, problems
