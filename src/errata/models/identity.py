"""Identity of models and tokenizers: hashes that do not depend on the dtype of loading.

A weight's hash covers its shape and its values rounded to bfloat16, so a checkpoint has the same
identity in float32 and bfloat16. (float16 rounds differently: a float32 checkpoint loaded in
float16 counts as another model.)

    model_hash = <hash of the set of tensors>-<hash of the pairs of name and tensor>

Up to version 3ea01b0 only the first part was recorded; `same_weights` accepts such a record.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.errors import ErrataError
from errata.core.version import __version__

CONTAINERS = frozenset(
    ("base_model", "base_layer", "gpt_neox", "language_model", "model", "module", "transformer")
) | {"_orig_mod"}
"""Name components of wrapper modules: PEFT, DDP, torch.compile and Transformers."""


def tensor_hash(tensor: Tensor) -> str:
    """Return a hash of a tensor's shape and of its values in bfloat16."""
    if tensor.is_meta:
        raise ErrataError(
            "the model is partly offloaded, so its weights cannot be read",
            "load it onto one device",
        )
    data = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(data.numpy().data)
    return digest.hexdigest()


def model_hash(model: PreTrainedModel) -> str:
    """Return the hash of all parameters of a model and their names.

    Names are compared without `CONTAINERS`, which differ between versions and wrappers. An
    output embedding equal to the input embedding counts once, whether the two are tied or not.
    """
    hashes = {
        name: tensor_hash(_from_disk(model, name) if weight.is_meta else weight)
        for name, weight in model.named_parameters()
    }
    content = hashlib.sha256("".join(sorted(set(hashes.values()))).encode()).hexdigest()
    if head := _copied_head(model, hashes):
        del hashes[head]
    named = sorted(f"{_bare(name)} {digest}" for name, digest in hashes.items())
    return f"{content}-{hashlib.sha256(chr(10).join(named).encode()).hexdigest()[:32]}"


def _from_disk(model: PreTrainedModel, name: str) -> Tensor:
    """Return a weight that accelerate has offloaded; unchanged where it cannot be read."""
    from accelerate.utils import align_module_device

    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module):
        weight: Tensor = getattr(module, leaf).detach()
    return weight


def _copied_head(model: PreTrainedModel, hashes: dict[str, str]) -> str | None:
    """Return the name of an untied output embedding with the values of the input embedding."""
    names = {weight: name for name, weight in model.named_parameters()}
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding, head = (names.get(getattr(module, "weight", None)) for module in modules)
    if embedding is None or head is None or embedding == head:
        return None
    return head if hashes[head] == hashes[embedding] else None


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in CONTAINERS)


def same_weights(one: str, other: str) -> bool:
    """Return whether two model hashes agree; the old form is compared by its content hash alone."""
    (content, _, names), (content_2, _, names_2) = one.partition("-"), other.partition("-")
    return content == content_2 and (not names or not names_2 or names == names_2)


def old_form(weights: str) -> str:
    """Return a model hash as it was recorded up to version 3ea01b0."""
    return weights.partition("-")[0]


def same_record(found: Any, wanted: Any) -> bool:
    """Return whether two JSON values are equal, except for model hashes in the old form.

    A model hash is the value of the key `weights`; see `same_weights`.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(
            same_weights(value, wanted[name])
            if name == "weights" and isinstance(value, str) and isinstance(wanted[name], str)
            else same_record(value, wanted[name])
            for name, value in found.items()
        )
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same_record, found, wanted))
    return bool(found == wanted)


def check_finite(model: PreTrainedModel) -> None:
    """Raise `ErrataError` when a weight contains NaN or infinity."""
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            continue
        if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise ErrataError(
                f"the model's weights contain NaN or infinity, in {name}",
                "was its training or download interrupted? load another copy",
                "or load it in a wider dtype: --dtype float32 (the largest float16 is 65504)",
            )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that determines a fast tokenizer's token ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "errata": __version__,
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
    }
