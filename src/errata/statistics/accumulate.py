"""One resumable pass over text that sums k kᵀ for several blocks.

The order of work is a `BatchPlan`, a pure function of the rows and a budget. Between batches the
partial sums can be saved in a `Checkpoint` file; a pass that finds one of the same plan resumes
from it, and its result is the same to the bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from errata.core.distributed import ALONE, Ranks
from errata.core.files import parse_json, write_tensors
from errata.core.progress import Progress, Say, no_progress, say_nothing
from errata.models.families import family_of, width_of
from errata.models.hooks import Site, frozen, record
from errata.models.tokens import batches_by_length, pad_right
from errata.statistics.gram import Gram

Rows = Sequence[tuple[int, ...]]

BUDGET = 2048
"""Padded tokens per batch on a CPU; larger batches no longer fit into its caches."""
GPU_BUDGET = 16384


def budget_for(device: torch.device) -> int:
    """Return the number of padded tokens per batch on a device."""
    return BUDGET if device.type == "cpu" else GPU_BUDGET


class BatchPlan(NamedTuple):
    """Disjoint batches of row indices, in the order in which they are run."""

    batches: tuple[tuple[int, ...], ...]
    first: int
    """Number of batches with even rows; those after them contain the odd rows."""

    @classmethod
    def of(cls, rows: Rows, budget: int, ranks: Ranks = ALONE) -> BatchPlan:
        """Group rows by length, at most `budget` padded tokens per batch; keep this rank's share.

        Even rows come first, so that the sums after them cover a representative half of the text.
        """
        halves = []
        for parity in (0, 1):
            half = range(parity, len(rows), 2)
            groups = batches_by_length([len(rows[index]) for index in half], budget)
            halves.append(ranks.share([tuple(half[i] for i in group) for group in groups]))
        return cls((*halves[0], *halves[1]), len(halves[0]))

    def tokens(self, rows: Rows, batches: int | None = None) -> int:
        """Return the number of tokens in the first `batches` batches (default: all)."""
        return sum(len(rows[index]) for batch in self.batches[:batches] for index in batch)

    def digest(self, rows: Rows, **more: object) -> str:
        """Return a hash of the batches, of the ids in them and of the values in `more`."""
        digest = hashlib.sha256(json.dumps([self.first, more], sort_keys=True).encode())
        for batch in self.batches:
            digest.update(array("q", [len(batch), *(len(rows[i]) for i in batch)]).tobytes())
            for index in batch:
                digest.update(array("q", rows[index]).tobytes())
        return digest.hexdigest()


class Sums(NamedTuple):
    """The result of a pass."""

    grams: dict[int, Gram]
    """The sum of k kᵀ per block."""
    tokens: int
    """Number of tokens in `grams`."""
    halves: dict[int, list[Tensor]]
    """Per block, panels of the sum over the even rows, float32; empty if not requested."""
    half: int
    """Number of tokens in `halves`."""


@dataclass
class Checkpoint:
    """The file for a pass's partial sums, and how often it is written."""

    path: Path
    every: float = 30.0
    """Seconds between writes; longer where writing takes over a twentieth of that."""
    clock: Callable[[], float] = time.monotonic
    say: Say = say_nothing
    """Called with a message when a pass resumes."""
    _next: float = field(default=0.0, init=False)

    def load(self, digest: str, tensors: Mapping[str, Tensor]) -> int:
        """Load the sums into `tensors`; return the number of batches in them.

        Without a readable file of this plan, zero `tensors` and return 0.
        """
        self._next = self.clock() + self.every
        done = self._read(digest, tensors)
        if done:
            self.say(f"resuming an interrupted measurement after {done} batches")
        else:
            for tensor in tensors.values():
                tensor.zero_()
        return done

    def _read(self, digest: str, tensors: Mapping[str, Tensor]) -> int:
        try:
            with safe_open(self.path, framework="pt") as file:
                header = parse_json((file.metadata() or {}).get("errata", ""))
                if header["plan"] != digest:
                    return 0
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
                return int(header["done"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
            return 0

    def save(self, digest: str, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the sums of the first `done` batches, unless the last write was too recent."""
        start = self.clock()
        if start < self._next:
            return
        header = json.dumps({"plan": digest, "done": done})
        write_tensors(self.path, tensors, {"errata": header})
        now = self.clock()
        self._next = now + max(self.every, 20 * (now - start))

    def remove(self) -> None:
        """Remove the file, once the result of the pass is stored."""
        self.path.unlink(missing_ok=True)


@torch.no_grad()
def collect(
    model: PreTrainedModel,
    rows: Rows,
    blocks: Sequence[int],
    plan: BatchPlan,
    *,
    device: torch.device,
    halves: bool = False,
    partial: Checkpoint | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = no_progress,
) -> Sums:
    """Sum k kᵀ of every block over this rank's share of `rows`, then over all ranks.

    The model runs once per batch, up to the last block. The sums are on `device`; `progress` is
    called with (tokens done, total tokens) of this rank's share.
    """
    family = family_of(model)
    modules = [family.mlp_out(model, block) for block in blocks]
    grams = {block: Gram(width_of(m), device) for block, m in zip(blocks, modules, strict=True)}
    panels = {f"{b}.{i}": panel for b, g in grams.items() for i, panel in enumerate(g.sums)}
    half: dict[str, Tensor] = {}
    if halves:
        half = {f"half.{n}": torch.zeros(p.shape, device=device) for n, p in panels.items()}
    digest = plan.digest(rows, blocks=list(blocks), halves=halves, ranks=[ranks.rank, ranks.world])
    start = 0 if partial is None else partial.load(digest, panels | half)
    done, total = plan.tokens(rows, start), plan.tokens(rows)
    with frozen(model):
        for number, batch in enumerate(plan.batches[start:], start=start + 1):
            add_batch(model, [rows[i] for i in batch], modules, list(grams.values()))
            if halves and number == plan.first:
                for name, panel in panels.items():
                    half[f"half.{name}"].copy_(panel)
            done += sum(len(rows[i]) for i in batch)
            progress(done, total)
            if partial is not None and number < len(plan.batches):
                partial.save(digest, number, panels | half)
    return _over_ranks(grams, half, rows, ranks)


def add_batch(
    model: PreTrainedModel, rows: Rows, modules: Sequence[torch.nn.Module], grams: Sequence[Gram]
) -> None:
    """Run one batch and add the inputs of `modules`, padding excluded, to `grams`."""
    ids = pad_right(rows, model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    real = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
    padded = ids.numel() > sum(map(len, rows))

    def add(index: int, keys: Tensor) -> None:
        grams[index].add(keys[real] if padded else keys.flatten(0, 1))  # (tokens, d_in)

    record(model, ids, [Site(module, "input") for module in modules], transform=add)


def _over_ranks(
    grams: dict[int, Gram], half: Mapping[str, Tensor], rows: Rows, ranks: Ranks
) -> Sums:
    """Add the sums of all ranks."""
    halves: dict[int, list[Tensor]] = {}
    for block, gram in grams.items():
        for index, total in enumerate(gram.sums):
            ranks.add(total)
            if half:
                panel = half[f"half.{block}.{index}"].double()
                ranks.add(panel)
                halves.setdefault(block, []).append(panel.float())
    half_count = sum(map(len, rows[::2])) if halves else 0
    return Sums(grams, sum(map(len, rows)), halves, half_count)


@torch.no_grad()
def sample_keys(
    model: PreTrainedModel, rows: Rows, blocks: Sequence[int], count: int
) -> dict[int, Tensor]:
    """Return at most `count` keys, evenly spaced over the tokens of `rows`: (d_in, n) per block."""
    modules = [family_of(model).mlp_out(model, block) for block in blocks]
    found: list[list[Tensor]] = [[] for _ in blocks]
    with frozen(model):
        for row in rows:
            ids = pad_right([row], model.device)
            sites = [Site(module, "input") for module in modules]
            for rows_found, keys in zip(found, record(model, ids, sites), strict=True):
                rows_found.append(keys[0])
    total = sum(map(len, rows))
    chosen = torch.arange(0, total, max(1, -(-total // count)), device=model.device)
    return {b: torch.cat(keys)[chosen].T for b, keys in zip(blocks, found, strict=True)}
