"""Matrix products of linear layers with oneDNN, where its kernels are faster than MKL's.

PyTorch computes float32 products on x86 with MKL, which on AMD processors with AVX-512 uses only
AVX2: oneDNN, also part of PyTorch, is about twice as fast there (benchmarks/README.md). Both are
float32 products; results differ by rounding.
`torch.backends.mkldnn.flags(enabled=False)` keeps MKL.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def fast_products(model: PreTrainedModel) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """Return forwards (see `hooks.replaced`) of the linear layers that oneDNN should compute.

    Empty where MKL is as fast, or where oneDNN is missing or switched off. Weights that are
    trained, not float32, not on the CPU, or sharded or quantised, keep their own products.
    """
    if not onednn_is_faster():
        return {}
    linear = (m for m in model.modules() if type(m) in (nn.Linear, Conv1D))
    return {m: _forward(m) for m in linear if "forward" not in m.__dict__}


def onednn_is_faster() -> bool:
    """Return whether this CPU is AMD's with AVX-512, and oneDNN can be used in place of MKL."""
    return (
        bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    """Return a description of the CPU that includes its vendor."""
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            return file.read(512).decode("latin-1")  # the first core's
    except OSError:
        return platform.processor()


class _Product(torch.autograd.Function):
    """x Wᵀ + b for x (n, d_in) and W (d_out, d_in); gradients reach x alone, and once.

    For x of other dimensions oneDNN returns a view, which nothing may change in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen, so it need not be saved as an input of the derivative
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient, ctx.weight.T, None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return found


def _forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward of a linear layer with oneDNN, and its own for anything unusual."""
    own = type(module).forward

    def run(x: Tensor) -> Tensor:
        weight, bias = cast("Tensor", module.weight), cast("Tensor | None", module.bias)
        held = [weight] if bias is None else [weight, bias]
        trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in held)
        if trained or torch.is_autocast_enabled("cpu") or not all(map(_suits, [x, *held])):
            return own(module, x)
        matrix = weight.T if type(module) is Conv1D else weight
        found: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), matrix, bias)
        return found.view(*x.shape[:-1], -1)

    return run


def _suits(tensor: Tensor) -> bool:
    """Return whether a tensor is an ordinary one of float32 on the CPU."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.numel() > 0
    )
