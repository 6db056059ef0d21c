"""Checkpoints quantised to 4 bits by bitsandbytes: dequantised once, and kept in the cache.

Each value is the one that bitsandbytes computes with, in the dtype that it was quantised from:
code[q] · absmax, where absmax may be quantised itself. In 8 bits (LLM.int8()) it quantises the
inputs as well, so no plain weight gives its results, and such checkpoints are not loaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from errata.core.errors import ErrataError
from errata.core.files import require_space, write_tensors, write_text, writing_folder
from errata.core.locks import locked
from errata.core.places import cache_folder
from errata.core.progress import Say
from errata.models.checkpoint import AGAIN, INDEX, ORIGINAL, check_whole, shards_of
from errata.models.gguf import QUANTISATION
from errata.models.quiet import quiet

PACKAGE = "bitsandbytes"
REVISION = 1
"""Part of the cache key; raised when the conversion changes, so that older ones are not used."""
MARK = ".quant_state.bitsandbytes__"
"""What stands between a quantised weight's name and the kind of its quantisation."""
DAMAGED = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError)
"""Exceptions that inconsistent parts of a quantised weight raise."""


def is_four_bit(settings: Any) -> bool:
    """Whether a `quantization_config` is that of bitsandbytes in 4 bits."""
    if not isinstance(settings, dict) or not settings.get("load_in_4bit"):
        return False
    return settings.get("quant_method") in (None, "bitsandbytes")


def dequantised(folder: Path, say: Say) -> Path:
    """Return a folder with the dequantised weights of a checkpoint, converted on first use.

    Raises `ErrataError` if bitsandbytes is not installed or a weight cannot be dequantised.
    """
    if find_spec(PACKAGE) is None:
        raise ErrataError(
            f"the weights of {folder} are quantised (bitsandbytes) and cannot be edited",
            "pip install 'errata-lm[bitsandbytes]', which dequantises them",
            ORIGINAL,
        )
    shards = shards_of(folder)
    for path in shards:
        check_whole(path)
    name = f"{folder.resolve().name}-{_digest(folder, shards)[:16]}"
    target = cache_folder() / "models" / name
    wait = f"another process is dequantising {folder.name}; waiting for it"
    with locked(target.parent / f".{name}.lock", lambda: say(wait)):
        if not target.exists():
            size = 8 * sum(path.stat().st_size for path in shards)
            require_space(target.parent, size, f"the dequantised weights of {folder.name}")
            say(f"dequantising {folder.name} once to {target}")
            with writing_folder(target) as temporary:
                _convert(folder, shards, temporary)
    return target


def _digest(folder: Path, shards: list[Path]) -> str:
    digest = hashlib.sha256(f"bitsandbytes, revision {REVISION}".encode())
    for path in (folder / "config.json", *shards):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _convert(folder: Path, shards: list[Path], target: Path) -> None:
    """Write the checkpoint with plain weights, and its other files unchanged."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in shards]
        places = {name: number for number, file in enumerate(files) for name in file.keys()}  # noqa: SIM118
        marks = [name.partition(MARK) for name in places if MARK in name]
        kinds = {weight: kind for weight, _, kind in marks}
        if not kinds:
            raise ErrataError(
                f"the weights of {folder} are quantised (bitsandbytes) by its config.json and not "
                "in its files",
                ORIGINAL,
            )
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for name in places:
            if (weight := _weight_of(name, kinds)) is not None and name != weight:
                parts[weight].append(name)
        belongs = {part for of in parts.values() for part in of}
        kept = [name for name in places if name not in belongs]
        for number, path in enumerate(shards):
            tensors: dict[str, Tensor] = {}
            for name in [each for each in kept if places[each] == number]:
                tensor = files[number].get_tensor(name)
                if name in kinds:
                    own = {each: files[places[each]].get_tensor(each) for each in parts[name]}
                    tensor = _dequantise(folder, name, tensor, own)
                tensors[name] = tensor.contiguous()
            write_tensors(target / path.name, tensors, {"format": "pt"})
    _copy_others(folder, target)
    if (folder / INDEX).is_file():
        index = {"metadata": {}, "weight_map": {each: shards[places[each]].name for each in kept}}
        write_text(target / INDEX, json.dumps(index, indent=1))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    del config["quantization_config"]
    config[QUANTISATION] = f"bitsandbytes {kinds[min(kinds)]}"
    write_text(target / "config.json", json.dumps(config, indent=1))


def _weight_of(name: str, kinds: dict[str, str]) -> str | None:
    """Return the quantised weight of which a stored tensor is a part."""
    head, found, _ = name.partition(".weight")
    return head + found if head + found in kinds else None


def _dequantise(folder: Path, name: str, packed: Tensor, parts: dict[str, Tensor]) -> Tensor:
    with quiet():
        from bitsandbytes.functional import QuantState, dequantize_4bit

    try:
        state = QuantState.from_dict(
            {key.removeprefix(f"{name}."): part for key, part in parts.items()},
            device=torch.device("cpu"),
        )
        found: Tensor = dequantize_4bit(packed, state)
        return found.reshape(state.shape)
    except DAMAGED as error:
        raise ErrataError(
            f"{name} in {folder} cannot be dequantised: {str(error) or type(error).__name__}",
            AGAIN,
        ) from None


def _copy_others(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        if (
            path.is_file()
            and path.suffix != ".safetensors"
            and path.name
            not in (
                INDEX,
                "config.json",
            )
        ):
            shutil.copyfile(path, target / path.name)
