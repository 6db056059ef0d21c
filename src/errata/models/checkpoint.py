"""The files of a checkpoint folder, checked before the weights are read.

A safetensors file is the length n of its header (8 bytes, little-endian), n bytes of JSON with the
dtype, shape and place of each tensor, and the data. Damage shows in the header and the file's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.core.errors import ErrataError
from errata.core.files import parse_json, reason

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
LONGEST_HEADER = 100_000_000
"""The limit of the safetensors library, in bytes."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are not quantised."""
PARTS = ("qweight", "qzeros", "weight_packed", "weight_scale", "weight_scale_inv", "absmax", "SCB")
"""Last parts of the names of quantised weights and their scales."""
AGAIN = "was its download or export interrupted? load another copy"
ORIGINAL = "load the original checkpoint, unquantised, as a folder or by Hub name"
"""Hint for weights that cannot be loaded."""


def check_files(folder: Path) -> None:
    """Raise `ErrataError` for a missing, damaged or quantised file of weights in a folder.

    Folders without safetensors are left to Transformers, except that the files that an index of
    pickled weights names must exist.
    """
    if not (shards := shards_of(folder)) and (folder / PICKLED_INDEX).is_file():
        _shards(folder / PICKLED_INDEX)
    for path in shards:
        for tensor, dtype in _stored(path):
            if tensor.rpartition(".")[2] in PARTS or dtype not in FLOATS:
                raise ErrataError(
                    f"the weights in {path} are quantised ({tensor} is stored as {dtype}), and "
                    "the configuration does not say how",
                    ORIGINAL,
                )


def shards_of(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, each of which must exist; none without."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    return _shards(folder / INDEX) if (folder / INDEX).is_file() else []


def check_whole(path: Path) -> None:
    """Raise `ErrataError` for a safetensors file that is damaged."""
    for _ in _stored(path):
        pass


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, each of which must exist."""
    try:
        values = parse_json(index.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ErrataError(f"cannot read {index}: {reason(error)}", AGAIN) from None
    places = values.get("weight_map") if isinstance(values, dict) else None
    names = set(places.values()) if isinstance(places, dict) and _all_text(places) else set()
    if not names or any(Path(name).name != name for name in names):
        raise ErrataError(
            f"{index} does not say which file of the folder holds which weight",
            'it is written as {"weight_map": {NAME: FILE, …}}',
            AGAIN,
        )
    for name in sorted(names):
        if not (index.parent / name).is_file():
            raise ErrataError(f"{index.parent / name} is missing, which {index.name} names", AGAIN)
    return [index.parent / name for name in sorted(names)]


def _all_text(values: dict[str, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def _stored(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and dtype of each matrix in a safetensors file, which must be whole."""
    header, held = _header(path)
    for name, tensor in header.items():
        try:
            dtype, shape, end = tensor["dtype"], tensor["shape"], tensor["data_offsets"][1]
            cut = end > held
        except (LookupError, TypeError):
            raise ErrataError(f"{path} is damaged: its header is not valid", AGAIN) from None
        if cut:
            raise ErrataError(f"{path} is truncated: {name} lies beyond its end", AGAIN)
        if len(shape) > 1 and (name.endswith(".weight") or name.rpartition(".")[2] in PARTS):
            yield name, str(dtype)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and the number of bytes after it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            whole = start[8:] == b"{" and length <= LONGEST_HEADER
            text = b"{" + file.read(length - 1) if whole else b""
    except OSError as error:
        raise ErrataError(f"cannot read {path}: {reason(error)}", AGAIN) from None
    if not size:
        raise ErrataError(f"{path} is empty", AGAIN)
    if start.startswith(b"version "):
        raise ErrataError(
            f"{path} is a Git LFS pointer, not the file itself", "download it: git lfs pull"
        )
    if not whole:
        raise ErrataError(f"{path} is no safetensors file", AGAIN)
    if len(text) < length:
        raise ErrataError(f"{path} is truncated: its header is incomplete", AGAIN)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ErrataError(f"{path} is damaged: its header is not valid", AGAIN) from None
    header.pop("__metadata__", None)
    return header, size - 8 - length
