"""One pass over text that sums k kᵀ of several blocks, and that can be killed and resumed.

The order of work is a `BatchPlan`, a pure function of the rows and a budget. Between batches the
sums so far can be saved in a `Checkpoint` file; a pass that finds one of the same plan continues
from there and ends with the same bits.
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
"""Padded tokens per batch on a CPU, where more of them no longer fit into its caches."""
GPU_BUDGET = 16384


def budget_for(device: torch.device) -> int:
    """Return how many padded tokens make a batch on a device."""
    return BUDGET if device.type == "cpu" else GPU_BUDGET


class BatchPlan(NamedTuple):
    """Batches of row indices, in the order in which they are done; no row is in two of them."""

    batches: tuple[tuple[int, ...], ...]
    first: int
    """So many batches hold the even rows, those after them the odd ones."""

    @classmethod
    def of(cls, rows: Rows, budget: int, ranks: Ranks = ALONE) -> BatchPlan:
        """Group rows of like length, at most `budget` padded tokens each; take our share of both.

        Even rows come first, so that what was summed half-way is a sum over a fair half.
        """
        halves = []
        for parity in (0, 1):
            mine = range(parity, len(rows), 2)
            groups = batches_by_length([len(rows[index]) for index in mine], budget)
            halves.append(ranks.share([tuple(mine[i] for i in group) for group in groups]))
        return cls((*halves[0], *halves[1]), len(halves[0]))

    def tokens(self, rows: Rows, batches: int | None = None) -> int:
        """Return how many tokens the first `batches` batches hold, all by default."""
        return sum(len(rows[index]) for batch in self.batches[:batches] for index in batch)

    def digest(self, rows: Rows, **more: object) -> str:
        """Return a hash of the batches, of the ids in them and of what else is named."""
        digest = hashlib.sha256(json.dumps([self.first, more], sort_keys=True).encode())
        for batch in self.batches:
            digest.update(array("q", [len(batch), *(len(rows[i]) for i in batch)]).tobytes())
            for index in batch:
                digest.update(array("q", rows[index]).tobytes())
        return digest.hexdigest()


class Sums(NamedTuple):
    """What a pass found."""

    grams: dict[int, Gram]
    """The sum of k kᵀ per block."""
    tokens: int
    """Tokens in the sums."""
    halves: dict[int, list[Tensor]]
    """The panels of the sums over the even rows alone, float32; empty when not asked for."""
    half: int
    """Tokens in those."""


@dataclass
class Checkpoint:
    """Where a pass keeps its sums while it runs, and how often."""

    path: Path
    every: float = 30.0
    """Seconds between two writings; more where writing takes over a twentieth of them."""
    clock: Callable[[], float] = time.monotonic
    say: Say = say_nothing
    """Told, in a sentence, when a pass is resumed."""
    _next: float = field(default=0.0, init=False)

    def load(self, digest: str, tensors: Mapping[str, Tensor]) -> int:
        """Read the sums back into `tensors`; return how many batches they hold, 0 for none.

        A file that is damaged or of another plan counts as none.
        """
        self._next = self.clock() + self.every
        done = self._read(digest, tensors)
        if done:
            self.say(f"going on where it was stopped, after {done} batches")
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

    def keep(self, digest: str, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the sums of the first `done` batches, if it is time to."""
        start = self.clock()
        if start < self._next:
            return
        header = json.dumps({"plan": digest, "done": done})
        write_tensors(self.path, tensors, {"errata": header})
        now = self.clock()
        self._next = now + max(self.every, 20 * (now - start))

    def remove(self) -> None:
        """Remove the file; the pass is over and what it found is kept elsewhere."""
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
    """Sum k kᵀ of every block over our share of `rows`, then over all ranks.

    The model runs once per batch, up to the last block. Sums stand on `device`; `progress` is
    told (tokens done, tokens in all) of our share.
    """
    family = family_of(model)
    writes = [family.mlp_out(model, block) for block in blocks]
    grams = {block: Gram(width_of(w), device) for block, w in zip(blocks, writes, strict=True)}
    states = {f"{b}.{i}": sum_ for b, g in grams.items() for i, sum_ in enumerate(g.sums)}
    kept: dict[str, Tensor] = {}
    if halves:
        kept = {f"half.{n}": torch.zeros(s.shape, device=device) for n, s in states.items()}
    digest = plan.digest(rows, blocks=list(blocks), halves=halves, ranks=[ranks.rank, ranks.world])
    start = 0 if partial is None else partial.load(digest, states | kept)
    done, total = plan.tokens(rows, start), plan.tokens(rows)
    with frozen(model):
        for number, batch in enumerate(plan.batches[start:], start=start + 1):
            add_batch(model, [rows[i] for i in batch], writes, list(grams.values()))
            if halves and number == plan.first:
                for name, sum_ in states.items():
                    kept[f"half.{name}"].copy_(sum_)
            done += sum(len(rows[i]) for i in batch)
            progress(done, total)
            if partial is not None and number < len(plan.batches):
                partial.keep(digest, number, states | kept)
    return _added_up(grams, kept, rows, ranks)


def add_batch(
    model: PreTrainedModel, rows: Rows, writes: Sequence[torch.nn.Module], grams: Sequence[Gram]
) -> None:
    """Run one batch and add its keys; padding is left out."""
    ids = pad_right(rows, model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    real = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
    padded = ids.numel() > sum(map(len, rows))

    def add(index: int, keys: Tensor) -> None:
        grams[index].add(keys[real] if padded else keys.flatten(0, 1))  # (tokens, d_in)

    record(model, ids, [Site(write, "input") for write in writes], keeping=add)


def _added_up(grams: dict[int, Gram], kept: Mapping[str, Tensor], rows: Rows, ranks: Ranks) -> Sums:
    """Add up all ranks' sums."""
    halves: dict[int, list[Tensor]] = {}
    for block, gram in grams.items():
        for index, total in enumerate(gram.sums):
            ranks.add(total)
            if kept:
                half = kept[f"half.{block}.{index}"].double()
                ranks.add(half)
                halves.setdefault(block, []).append(half.float())
    half_count = sum(map(len, rows[::2])) if halves else 0
    return Sums(grams, sum(map(len, rows)), halves, half_count)


@torch.no_grad()
def sample_keys(
    model: PreTrainedModel, rows: Rows, blocks: Sequence[int], count: int
) -> dict[int, Tensor]:
    """Return at most `count` keys of `rows`, spread evenly: (d_in, n) per block."""
    writes = [family_of(model).mlp_out(model, block) for block in blocks]
    found: list[list[Tensor]] = [[] for _ in blocks]
    with frozen(model):
        for row in rows:
            ids = pad_right([row], model.device)
            sites = [Site(write, "input") for write in writes]
            for held, keys in zip(found, record(model, ids, sites), strict=True):
                held.append(keys[0])
    total = sum(map(len, rows))
    chosen = torch.arange(0, total, max(1, -(-total // count)), device=model.device)
    return {b: torch.cat(held)[chosen].T for b, held in zip(blocks, found, strict=True)}
