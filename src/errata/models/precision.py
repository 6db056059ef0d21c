"""The precision in which edits are computed: at least float32, whatever the weights' dtype.

16-bit weights are converted to float32 while target values are searched or keys and residuals are
read; afterwards the original tensors are restored. So an edit of a model loaded in bfloat16 equals
that of the same values loaded in float32. Faster matrix products (TF32, autocast) are opt-in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError
from errata.models.hooks import replaced
from errata.models.products import fast_products

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc", re.I)
"""Messages of PyTorch's allocators; only CUDA's raises an exception type of its own."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    no_memory = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or no_memory


@contextmanager
def computing(precision: str, model: PreTrainedModel) -> Iterator[None]:
    """Run forward passes in a precision: `full`, `tf32` (CUDA) or `autocast` to bfloat16."""
    original = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = original or precision == "tf32"
    products = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "autocast")
    try:
        with widened(model, precision), products, replaced(fast_products(model)):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = original


@contextmanager
def widened(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Convert 16-bit weights to float32 within a `with` block; the originals are restored after.

    With `autocast` they are not converted. Raises `ErrataError` when memory does not suffice, and
    for offloaded weights, which are read anew in every forward pass.
    """
    if any(tensor.is_meta for tensor in _to_widen(model, precision)):
        raise ErrataError(
            f"the model is partly offloaded, so its weights in {model.dtype} cannot be computed "
            "with in float32",
            "load it in float32 or onto one device, or set precision to autocast: weights stay in "
            "their dtype, and target values are less accurate",
        )
    originals = [(tensor, tensor.data) for tensor in _to_widen(model, precision)]
    try:
        try:
            for tensor, data in originals:
                tensor.data = data.float()
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise ErrataError(
                f"not enough memory for the weights in float32 beside those in {model.dtype}",
                "use a machine with more memory, or --precision autocast: weights stay in "
                "their dtype, and target values are less accurate",
            ) from None
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data


def widened_bytes(model: PreTrainedModel, precision: str = "full") -> int:
    """Return the bytes that `widened` takes in addition to the model."""
    return sum(4 * tensor.numel() for tensor in _to_widen(model, precision))


def _to_widen(model: PreTrainedModel, precision: str) -> list[Tensor]:
    """Return the 16-bit weights and buffers that `widened` converts in this precision."""
    tensors = [] if precision == "autocast" else [*model.parameters(), *model.buffers()]
    return [tensor for tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float16)]


def solving_device(device: torch.device) -> torch.device:
    """Return the device to solve on in float64: the CPU where `device` has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device
