"""Hub datasets, from the Hub or, offline, from a folder that mirrors it.

A mirror has each dataset at MIRROR/<owner>/<name>, as written by `hf download --repo-type dataset`;
it may also have only one configuration's files, in a subfolder of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError


def mirrored(dataset: str, config: str | None, mirror: Path) -> tuple[str, str | None]:
    """Return the path and configuration with which `datasets` loads a mirrored dataset.

    Raises `ErrataError` when the mirror has no such folder.
    """
    folder = mirror / dataset
    if not folder.is_dir():
        raise ErrataError(
            f"the mirror {mirror} has no folder {dataset}",
            f"where there is network access: hf download --repo-type dataset {dataset} "
            f"--local-dir {folder}",
        )
    if config is not None and (folder / config).is_dir() and not (folder / "README.md").exists():
        return str(folder / config), None
    return str(folder), config


def hub_rows(
    dataset: str, config: str | None, split: str, mirror: Path | None = None
) -> Sequence[dict[str, Any]]:
    """Return the rows of a split, read lazily from disk on iteration.

    Raises `ErrataError` when the dataset cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ErrataError(
            "reading Hub datasets needs an extra", "pip install 'errata-lm[tune]'"
        ) from None
    path, name = (dataset, config) if mirror is None else mirrored(dataset, config, mirror)
    try:
        rows: Sequence[dict[str, Any]] = load_dataset(path, name, split=split)
        return rows
    except Exception as error:  # `datasets` raises many types of exceptions
        raise ErrataError(
            f"cannot load the dataset {dataset}: {str(error).splitlines()[0]}",
            "without network, give a local file, or a folder of copies where the verb has --mirror",
        ) from None
