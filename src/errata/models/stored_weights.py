"""The weights of a checkpoint, written again under the same names with a model's values.

Transformers renames tensors when it loads them: it adds or removes a prefix, or replaces an older
name. The stored names are found by reverting that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from errata.core.files import parse_json, write_tensors
from errata.models.older_form import write_json

FORMS = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, in the order in which Transformers looks for them."""
INDEX = ".index.json"
"""Suffix of the index of weights in several files."""


class NotStored(Exception):
    """A folder does not hold the weights of the model in a form that can be written again."""


def write_weights(source: Path, model: PreTrainedModel, folder: Path, *, kept: bool) -> None:
    """Write the files of weights of `source` into `folder`, with the values of `model`.

    With `kept`, the model is in the checkpoint's dtype: tensors that did not change keep their
    bytes, and others their dtype or the model's, whichever is wider. Otherwise every tensor has the
    model's dtype. `.bin` files become safetensors. Raises `NotStored` where names or shapes differ.
    """
    files, index = _files(source)
    left = _by_stored_name(model)
    places: dict[str, str] = {}
    size, taken = 0, set()
    for path in files:
        target = _renamed(path.name)
        with _opened(path) as (names, read, metadata):
            tensors = {}
            for name in names:
                value = _pop(left, name, model.base_model_prefix)
                tensors[name] = _chosen(name, read(name), value, kept)
                taken.add(None if value is None else value.data_ptr())
        if path == files[-1]:
            new = {name: value for name, value in left.items() if value.data_ptr() not in taken}
            tensors |= _untied_head(model, new)
        write_tensors(folder / target, tensors, metadata)
        places |= dict.fromkeys(tensors, target)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if index is not None:
        about = {**(index.get("metadata") or {}), "total_size": size}
        values = {**index, "metadata": about, "weight_map": dict(sorted(places.items()))}
        write_json(folder / (FORMS[0] + INDEX), values)


def _files(source: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the files of weights in a folder, and the content of their index, if there is one."""
    for form in FORMS:
        if (source / form).is_file():
            return [source / form], None
        if (path := source / (form + INDEX)).is_file():
            index = parse_json(path.read_text(encoding="utf-8-sig"))
            names = sorted(set(index["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise NotStored(f"{path} names files outside its folder")
            return [source / name for name in names], index
    raise NotStored(f"{source} contains no weights")


def _renamed(name: str) -> str:
    """Return the name of a file of weights as safetensors."""
    if not name.endswith(".bin"):
        return name
    return name.removesuffix(".bin").replace("pytorch_model", "model", 1) + ".safetensors"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor], dict[str, str]]]:
    """Yield the names of a file's tensors, a function that reads one, and the file's metadata."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            yield list(file.keys()), file.get_tensor, file.metadata() or {"format": "pt"}
    else:
        held = torch.load(path, map_location="cpu", weights_only=True)
        yield list(held), lambda name: _copied(held[name]), {"format": "pt"}


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _by_stored_name(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the model's tensors by the names under which its checkpoint stores them."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return dict(revert_weight_conversion(model, state))


def _pop(left: dict[str, Tensor], name: str, prefix: str) -> Tensor | None:
    """Remove and return the value of a stored tensor; None for one that the model does not use."""
    for each in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if each in left:
            return left.pop(each)
    return None


def _chosen(name: str, stored: Tensor, value: Tensor | None, kept: bool) -> Tensor:
    """Return the tensor to write in place of a stored one."""
    if value is None or value.is_meta:  # on disk, where nothing is edited
        return stored
    if stored.shape != value.shape or stored.is_floating_point() != value.is_floating_point():
        raise NotStored(f"{name} is stored in another form than the model's")
    value = value.cpu()
    if kept and torch.equal(stored.to(value.dtype), value):
        return stored
    dtype = torch.promote_types(stored.dtype, value.dtype) if kept else value.dtype
    return _copied(value.to(dtype))


def _untied_head(model: PreTrainedModel, new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the output embedding if it is not in the checkpoint, because it was untied."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    heads = {name: t for name, t in new.items() if weight is not None and _is(t, weight)}
    if other := sorted(name for name in new.keys() - heads.keys() if not new[name].is_meta):
        raise NotStored(f"{other[0]} is not stored")
    return {name: _copied(tensor.cpu()) for name, tensor in heads.items()}


def _is(tensor: Tensor, parameter: Tensor) -> bool:
    return not tensor.is_meta and tensor.data_ptr() == parameter.data_ptr()
