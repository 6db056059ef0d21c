"""In which numbers an edit is computed: float32 at least, whatever the weights are kept in.

Weights of 16 bits are widened for as long as target values are searched or keys and residuals
are read, and are then the very tensors they were. So an edit of a model loaded in bfloat16 is that
of the same values loaded in float32. Faster products are for those who ask for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.errors import ErrataError

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc", re.I)
"""What PyTorch's allocators say; only CUDA's has an exception of its own."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    no_memory = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or no_memory


@contextmanager
def computing(precision: str, model: PreTrainedModel) -> Iterator[None]:
    """Let forward passes be as `precision` says: `full`, `tf32` (CUDA), `autocast` to bfloat16."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before or precision == "tf32"
    products = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "autocast")
    try:
        with widened(model, precision), products:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def widened(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Hold the weights in float32 at least for the time of a `with` block.

    With `autocast` they stay as they are. Raises `ErrataError` where there is no memory for that.
    """
    narrow = [(tensor, tensor.data) for tensor in _narrow(model, precision)]
    try:
        try:
            for tensor, data in narrow:
                tensor.data = data.float()
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise ErrataError(
                f"there is no memory for the weights in float32, beside those in {model.dtype}",
                "use a machine with more, or --precision autocast: the weights as they are, "
                "and target values less exact",
            ) from None
        yield
    finally:
        for tensor, data in narrow:
            tensor.data = data


def widened_bytes(model: PreTrainedModel, precision: str = "full") -> int:
    """Return the bytes that `widened` takes beside the model."""
    return sum(4 * tensor.numel() for tensor in _narrow(model, precision))


def _narrow(model: PreTrainedModel, precision: str) -> list[Tensor]:
    """Return the weights and buffers that are held wider in this precision."""
    held = [] if precision == "autocast" else [*model.parameters(), *model.buffers()]
    return [tensor for tensor in held if tensor.dtype in (torch.bfloat16, torch.float16)]


def solving_device(device: torch.device) -> torch.device:
    """Return where to solve in float64: the device itself, or the CPU beside one without."""
    return torch.device("cpu") if device.type == "mps" else device
