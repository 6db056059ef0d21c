"""A Llama-3-8B shape on one card: seconds per edit, share of the matmul peak, peak memory.

    python benchmarks/gpu.py                                  all of it, within eight minutes
    python benchmarks/gpu.py --device cpu --shape tiny        the same code in miniature

Random weights in bfloat16 and a search whose δ, loss and Adam are float32, against the plain search
of `tests/plain.py` on as much as a request; `tf32` repeats ours with TF32 products, which is never
the default and is labelled in what is written. Also measured: keys and solves of a batch at the
edited width with a made-up second moment. Results go to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from errata.budget import group_bytes, searched_at_once
from errata.family import family_of
from errata.hooks import Site, frozen
from errata.keys import keys_of
from errata.methods import Memit
from errata.moment import SecondMoment
from errata.settings import Search
from errata.values import Targets, search_targets
from measure import machine, rewrites

SHAPES = {
    "llama-3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 50_400,
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
SEARCH = Search(steps=25, clamp=0.75)
RESULTS = Path(__file__).parent / "results"


def built(shape: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with random weights, made on the device."""
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            LlamaConfig(**SHAPES[shape], tie_word_embeddings=False), dtype=dtype
        )
    return model.eval()


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, int, Any]:
    """Return seconds, peak bytes beside what was held before, and the result."""
    cuda = device.type == "cuda"
    held = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - held if cuda else 0
    return time.perf_counter() - start, peak, result


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of a large product."""
    size = 8192 if device.type == "cuda" else 512
    square = torch.ones(size, size, device=device, dtype=dtype)
    square @ square
    return 2 * size**3 / min(timed(lambda: square @ square, device)[0] for _ in range(3))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--requests", type=int, default=None, help="as many as fit")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    model = built(given.shape, device, dtype)
    found = {"machine": machine(), "shape": given.shape, "dtype": given.dtype}
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
    with frozen(model):
        found |= measured(model, device, given.requests)
    given.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    name = "gpu.json" if device.type == "cuda" else "gpu-miniature.json"
    (given.results / name).write_text(text + "\n", encoding="utf-8")
    print(text)


def measured(model: PreTrainedModel, device: torch.device, count: int | None) -> dict[str, Any]:
    """Return all figures."""
    from torch.utils.flop_counter import FlopCounterMode

    block = family_of(model).block_count(model) // 4  # 8 of 32, as AlphaEdit takes it
    wanted = rewrites(64)
    count = count or min(64, searched_at_once(model, block, wanted))
    chosen = wanted[:count]
    site = Site(family_of(model).block(model, block), "output")

    def ours(steps: int = SEARCH.steps) -> Targets:
        settings = SEARCH.with_values(steps=steps)
        return search_targets(model, chosen, block, site, settings, at_once=count)

    ours(2)
    seconds, peak, targets = timed(ours, device)
    few, more = (_flops(FlopCounterMode, partial(ours, steps)) for steps in (2, 3))
    flops = few + (SEARCH.steps - 2) * (more - few)
    float32 = peak_flops(device, torch.float32)
    figures = {
        "requests": count,
        "seconds_per_edit": seconds / count,
        "tflop_per_edit": flops / count / 1e12,
        "flops_per_second": flops / seconds,
        "matmul_peak_float32": float32,
        "share_of_float32_peak": flops / seconds / float32,
        "peak_bytes": peak,
        "forecast_bytes": group_bytes(model, block, chosen, count),
    }
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        labelled, _, _ = timed(ours, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    one, plain_peak, _ = timed(lambda: plainly(model, chosen[0].rows, device), device)
    return {
        "search": figures,
        "search with TF32 products (labelled, never the default)": labelled / count,
        "plain search, a step": {"seconds": one, "peak_bytes": plain_peak},
        "ratio": one * SEARCH.steps * count / seconds,
        "write": writing(model, device, block, chosen, targets),
    }


def plainly(model: PreTrainedModel, rows: Any, device: torch.device) -> None:
    """Run one step as the plain search does: all texts in full, there and back."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows], device=device)
    states = model.get_input_embeddings()(ids).detach().requires_grad_()
    said = model(inputs_embeds=states, use_cache=False).logits.float().log_softmax(-1)
    said[:, -1, 0].sum().backward()


def writing(
    model: PreTrainedModel, device: torch.device, block: int, chosen: Any, targets: Targets
) -> dict[str, float]:
    """Return the seconds of keys and of a solve, the second moment taken apart before."""
    reading, _, (keys, _) = timed(lambda: keys_of(model, chosen, block), device)
    width = keys.shape[1]
    noise = torch.randn(width, 64, device=device)
    matrix = noise @ noise.T / 64 + torch.eye(width, device=device)
    moment, method = SecondMoment(matrix, 20 * width), Memit()
    columns = keys.T.double()
    once, _, _ = timed(lambda: method.read(columns, columns, moment, None), device)
    solving, _, _ = timed(lambda: method.read(columns, columns, moment, None), device)
    return {"keys": reading, "factor_once": once - solving, "solve": solving}


def _flops(counter: Any, work: Callable[[], Any]) -> float:
    with counter(display=False) as counted:
        work()
    return float(counted.get_total_flops())


if __name__ == "__main__":
    main()
