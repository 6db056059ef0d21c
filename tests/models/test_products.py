"""oneDNN's products of linear layers give what the model's own give, and only where they may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from errata.models import products
from errata.models.hooks import frozen, replaced
from errata.models.products import fast_products
from tiny import tiny_model

IDS = torch.tensor([[3, 5, 7, 11], [2, 9, 4, 6]])
FAMILIES = ["gpt2", "llama", "phi", "olmo"]  # olmo clips a product in place
MODELS = pytest.mark.parametrize("model_type", FAMILIES)

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"
)


@pytest.fixture(autouse=True)
def _wherever_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the CPU is one where oneDNN is faster."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


class _Named(TorchDispatchMode):
    """Collects the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def operations(work: Callable[[], object]) -> set[str]:
    with _Named() as named:
        work()
    return {name for name in named.names if "linear_pointwise" in name or "aten.mm" in name}


def run(model: PreTrainedModel, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient of their squares with respect to the embeddings."""
    states = states.clone().requires_grad_()
    logits = model(inputs_embeds=states, use_cache=False).logits
    return logits.detach(), torch.autograd.grad(logits.square().mean(), states)[0]


@MODELS
def test_logits_and_gradients_are_the_models_own(model_type: str) -> None:
    model = tiny_model(model_type)
    states = torch.randn(2, 4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with frozen(model):
        own = run(model, states)
        with replaced(fast_products(model)):
            assert "mkldnn._linear_pointwise.default" in operations(lambda: run(model, states))
            ours = run(model, states)
        assert "mkldnn._linear_pointwise.default" not in operations(lambda: run(model, states))
    for one, two in zip(ours, own, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@MODELS
def test_weights_that_are_trained_get_their_gradients(model_type: str) -> None:
    model = tiny_model(model_type).eval()
    with replaced(fast_products(model)):
        model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)


def test_a_second_derivative_is_refused() -> None:
    model = tiny_model("llama")
    states = torch.ones(1, 2, model.config.hidden_size, requires_grad=True)
    with frozen(model), replaced(fast_products(model)):
        logits = model(inputs_embeds=states, use_cache=False).logits
        (first,) = torch.autograd.grad(logits.square().mean(), states, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.square().mean().backward()


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_one_of_float32(bias: bool) -> None:
    source = torch.Generator().manual_seed(0)
    layer, x = nn.Linear(300, 200, bias=bias), torch.randn(7, 300, generator=source)
    weight, added = layer.weight.detach().double(), layer.bias.detach().double() if bias else 0.0
    with torch.no_grad(), replaced(fast_products(nn.ModuleList([layer]))):
        apart = (layer(x) - (x.double() @ weight.T + added)).abs()
    most = 8 * 2**-24 * (x.double().abs() @ weight.abs().T + abs(added))
    assert (apart <= most).all()  # with x cut to 13 bits it is not


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_keep_their_products(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    with frozen(model), torch.no_grad():
        own = model(input_ids=IDS, use_cache=False).logits
        with replaced(fast_products(model)):
            assert torch.equal(model(input_ids=IDS, use_cache=False).logits, own)


def test_a_layer_whose_forward_is_replaced_already_is_left_alone() -> None:
    model = tiny_model("llama")
    assert model.lm_head in fast_products(model)
    with replaced({model.lm_head: lambda x: x}):
        assert model.lm_head not in fast_products(model)


def test_onednn_that_is_switched_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not fast_products(tiny_model("llama"))
