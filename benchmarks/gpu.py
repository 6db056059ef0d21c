"""A Llama-3-8B shape on one card: seconds per edit, share of the matmul peak, peak memory, laws.

    python benchmarks/gpu.py                                  all of it, within eight minutes
    python benchmarks/gpu.py --device cpu --shape tiny        the same code in miniature

Random weights, and MEMIT over five blocks with made-up second moments: many requests at once from
search to Δ, with weights kept in bfloat16 and in float32, computed in float32 both; then, labelled
and never the default, with TF32 and with bfloat16 products. Plain is the procedure of
`tests/plain.py` in float32 on three requests, all their steps, and a dense solve of the whole batch
for each block. At the end the tests marked `gpu` run. All goes to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from errata.methods import Memit
from errata.methods.closed_form.memory import group_bytes
from errata.methods.closed_form.rewrite import Rewrite
from errata.methods.closed_form.target_search import Targets
from errata.models.families import family_of, width_of
from errata.models.hooks import frozen
from errata.models.precision import widened_bytes
from errata.patches.update import Update
from errata.statistics.second_moment import SecondMoment
from flops import flops_of
from measure import machine, plain
from prompts import rewrites

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
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
BLOCKS = (4, 5, 6, 7, 8)
"""As AlphaEdit takes them for Llama-3-8B."""
STEPS = 25
SAMPLE = 3
"""Requests that the plain procedure is timed on."""
HERE = Path(__file__).resolve().parent


def built(shape: str, device: torch.device) -> PreTrainedModel:
    """Return the model in bfloat16 with random weights, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=False)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def made_up_moments(model: PreTrainedModel) -> dict[int, SecondMoment]:
    """Return a second moment per block: a few strong directions over a floor."""
    width = width_of(family_of(model).mlp_out(model, 0))
    noise = torch.randn(width, 64, device=model.device)
    matrix = noise @ noise.T / 64 + torch.eye(width, device=model.device)
    return {block: SecondMoment(matrix.clone(), 20 * width) for block in BLOCKS}


class Clock:
    """Seconds of work on a device, and the most bytes that it takes beside what was held."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Run `work`; return its seconds and its result."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if cuda else 0
        start = time.perf_counter()
        result = work()
        if cuda:
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() - held)
        return time.perf_counter() - start, result


def matmul_peak(device: torch.device) -> float:
    """Return the FLOPs per second of a large float32 product."""
    size = 8192 if device.type == "cuda" else 512
    square = torch.ones(size, size, device=device)
    square @ square
    return 2 * size**3 / min(Clock(device)(lambda: square @ square)[0] for _ in range(3))


def method_for(precision: str = "full") -> Memit:
    """Return MEMIT with all its steps, none of them spared by an early end."""
    search = {"steps": STEPS, "clamp": 0.75, "stop_at": 0.0, "precision": precision}
    return Memit.of({"blocks": BLOCKS, "search": search})


def edit(
    model: PreTrainedModel, wanted: list[Rewrite], moments: dict[int, SecondMoment], precision: str
) -> tuple[dict[str, Any], Targets, dict[str, Update]]:
    """Edit all requests in one batch; return figures, targets and Δ."""
    method, clock = method_for(precision), Clock(model.device)
    method = method.grouped(model, wanted)

    def search(steps: int) -> Targets:
        settings = {**method.search.model_dump(), "steps": steps}
        return method.with_values(search=settings).find_targets(model, wanted)

    search(2)  # the card's libraries load
    searching, targets = clock(partial(method.find_targets, model, wanted))
    write = partial(method.updates, model, wanted, targets, moments)
    first, _ = clock(write)  # takes the second moments apart, unless that was done
    writing, updates = clock(write)
    few, more = (flops_of(partial(search, steps)) for steps in (2, 3))
    flops = few + (STEPS - 2) * (more - few)
    at_once, block = method.requests_at_once or 1, BLOCKS[-1]
    widening = widened_bytes(model, precision)
    figures = {
        "requests": len(wanted),
        "searched_at_once": targets.at_once,
        "seconds_per_edit": (searching + writing) / len(wanted),
        "search_seconds": searching,
        "write_seconds": writing,
        "factor_seconds": first - writing,
        "search_flops_per_second": flops / searching,
        "peak_bytes": clock.peak,
        "forecast_search_bytes": group_bytes(model, block, wanted, at_once) + widening,
    }
    return figures, targets, updates


def plainly(
    model: PreTrainedModel, wanted: Sequence[Rewrite], moments: dict[int, SecondMoment], size: int
) -> tuple[dict[str, Any], torch.Tensor, dict[int, torch.Tensor]]:
    """Edit a sample the plain way; return figures per edit of a batch of `size`, z and Δ."""
    clock, solves = Clock(model.device), []
    weight = method_for().moment_weight

    def solve(K: torch.Tensor, R: torch.Tensor, block: int) -> torch.Tensor:
        matrix = moments[block].matrix
        taken, delta = clock(lambda: plain.memit(K, R, matrix, weight))
        solves.append(taken)
        return delta

    settings = method_for().search
    with model.device:
        plain.search(model, wanted[0], BLOCKS[-1], "block", settings.with_values(steps=2))
        searching, found = clock(
            lambda: [plain.search(model, w, BLOCKS[-1], "block", settings) for w in wanted]
        )
        values = torch.stack([each.initial + each.delta for each in found])
        edits = partial(plain.edit_blocks, model, wanted, values, BLOCKS, solve)
        reading, deltas = clock(edits)
        reading -= sum(solves)
        d_out, d_in = deltas[BLOCKS[0]].shape
        K, R = torch.randn(d_in, size), torch.randn(d_out, size)
        dense, _ = clock(lambda: solve(K, R, BLOCKS[0]))
    figures = {
        "sampled": f"{len(wanted)} requests, all their steps; one dense solve of {size} keys",
        "seconds_per_edit": (searching + reading) / len(wanted) + len(BLOCKS) * dense / size,
        "search_seconds_per_edit": searching / len(wanted),
        "read_seconds_per_edit": reading / len(wanted),
        "solve_seconds_per_block": dense,
        "peak_bytes": clock.peak,
    }
    return figures, values, deltas


def measured(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """Return all figures; the model ends in float32."""
    wanted, moments = rewrites(count), made_up_moments(model)
    peak = matmul_peak(model.device)
    found: dict[str, Any] = {"matmul_peak_float32": peak}
    faster = "labelled, never the default: "
    for name, precision in (
        ("bfloat16 weights", "full"),
        (f"{faster}bfloat16 weights and products", "autocast"),
        ("float32", "full"),
        (f"{faster}float32 weights, TF32 products", "tf32"),
    ):
        print(f"{name} …", file=sys.stderr, flush=True)
        if name == "float32":
            model.float()
        figures, _, _ = edit(model, wanted, moments, precision)
        if precision == "full":
            figures["share_of_float32_peak"] = figures["search_flops_per_second"] / peak
        found[name] = figures
    print("plain …", file=sys.stderr, flush=True)
    sample = wanted[:SAMPLE]
    theirs, values, deltas = plainly(model, sample, moments, count)
    _, targets, updates = edit(model, sample, moments, "full")
    names = {block: family_of(model).weight_name(block) for block in BLOCKS}
    return {
        **found,
        "plain": theirs,
        "ratio": theirs["seconds_per_edit"] / found["float32"]["seconds_per_edit"],
        "difference": {
            "z": _apart(targets.values, values),
            "delta": max(_apart(updates[names[b]].delta(), deltas[b]) for b in BLOCKS),
        },
    }


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def laws() -> dict[str, int]:
    """Run the tests marked `gpu`; return how many passed, failed, were skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/laws"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    told = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    counts = {word: int(number) for number, word in told}
    return counts or {"pytest ended with": done.returncode}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; try --device cpu --shape tiny")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none: a miniature"
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "card": card,
        "machine": machine(),
        "shape": given.shape,
    }
    model = built(given.shape, device)
    with frozen(model):
        found |= measured(model, given.requests)
    del model
    found["tests marked gpu"] = laws()
    given.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, allow_nan=False)
    name = "gpu.json" if device.type == "cuda" else "gpu-miniature.json"
    (given.results / name).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
