"""The benchmarks count the products of fused attention, also where keys have fewer heads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count

from errata.models import products
from errata.models.hooks import frozen, replaced
from tiny import tiny_model

IDS = torch.tensor([[3, 5, 7, 11, 2], [2, 9, 4, 6, 1]])
Q = (2, 8, 5, 16)
GROUPED = pytest.mark.parametrize("heads", [1, 2, 8])


def _loaded(name: str) -> ModuleType:
    """Return a module of `benchmarks`, whose folder would hide Python's own `trace`."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flops = _loaded("flops")


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    return (q @ k.mT).softmax(-1) @ v


def states(heads: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return q with 8 heads, k and v with `heads`, of which gradients are asked."""
    shapes = (Q, (2, heads, 7, 16), (2, heads, 7, 16))
    q, k, v = (torch.ones(shape, device=device, requires_grad=True) for shape in shapes)
    return q, k, v


@GROUPED
def test_the_formula_is_that_of_attention_written_out(heads: int) -> None:
    q, k, v = (torch.ones(shape) for shape in (Q, (2, heads, 7, 16), (2, heads, 7, 12)))
    with FlopCounterMode(display=False) as counter:
        written_out(q, k, v)
    assert flops.attention(q.shape, k.shape, v.shape) == counter.get_total_flops() > 0


@GROUPED
def test_the_formula_of_the_gradients_is_the_librarys_for_as_many_heads(heads: int) -> None:
    shapes = (2, 8, 5, 12), Q, (2, heads, 7, 16), (2, heads, 7, 12)
    wanted = sdpa_backward_flop_count((2, 8, 5, 12), Q, (2, 8, 7, 16), (2, 8, 7, 12))
    assert flops.attention_backward(*shapes) == wanted


@GROUPED
@pytest.mark.parametrize("kernel", ["cudnn", "efficient", "flash"])
def test_the_kernels_of_cuda_are_counted(
    kernel: str, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = states(heads, "meta")
    product = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")
    monkeypatch.delitem(flop_registry, product)  # some versions' formula refuses fewer heads
    more = () if kernel == "flash" else (None, True)
    counted = flops.flops_of(lambda: product(q, k, v, *more))
    assert counted == flops.attention(q.shape, k.shape, v.shape)


@GROUPED
def test_the_kernel_of_the_cpu_is_counted(heads: int) -> None:
    q, k, v = states(heads)
    forward = flops.attention(q.shape, k.shape, v.shape)
    backward = flops.attention_backward(q.shape, q.shape, k.shape, v.shape)

    def work() -> Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=True)

    assert flops.flops_of(work) == forward
    assert flops.flops_of(lambda: work().sum().backward()) == forward + backward


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_model_counts_the_same_with_either_attention(model_type: str) -> None:
    model = tiny_model(model_type)

    @torch.no_grad()
    def run() -> None:
        model(input_ids=IDS, use_cache=False)

    counts = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        counts.append(flops.flops_of(run))
    assert counts[0] == counts[1] > 0


def test_onednns_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def run() -> None:
        with frozen(model), replaced(products.fast_products(model)):
            model(input_ids=IDS, use_cache=False)

    own = flops.flops_of(lambda: model(input_ids=IDS, use_cache=False))
    monkeypatch.setattr(products, "_processor", lambda: "AuthenticAMD")
    assert flops.flops_of(run) == own
