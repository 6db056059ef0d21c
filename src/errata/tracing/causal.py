"""Causal tracing: restore one state of a corrupted run, measure how much of the answer returns.

The subject's embeddings are corrupted, and the clean state is restored at one token and block at a
time (arXiv 2202.05262, section 2.1). There are five kinds of states:

- hidden: the output of the block,
- mlp, attn: the outputs of the MLPs or the attention in a window of blocks around it,
- frozen-mlp, frozen-attn: the output of the block, while the MLPs (attention) of all later blocks
  are fixed, at that token, to their outputs in the corrupted run (appendix B.2).

Every cell equals a full forward pass with that one state restored, but only what the state affects
is computed: the corrupted run is recorded and restarted after the first block that differs, from
the restored token on. Cells that cannot affect the answer are skipped. Replacing an MLP or
attention output changes its own block at that token only, so that block is not recomputed either
(see `recorded_run.contributions`). In families with a norm after the MLP the module's output before
the norm is restored or fixed; the norm acts on each token separately, so restoring after it would
give the same result.

Differs from kmeng01/rome: in replace mode the baseline uses the replaced embeddings, as the cells
do; an answer of several tokens is also scored as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.core.progress import Progress, no_progress
from errata.models.families import family_of
from errata.models.hooks import frozen, steered
from errata.models.identity import versions
from errata.models.recorded_run import Contributions, RecordedRun, contributions
from errata.tracing.corruption import corrupting, noise_of
from errata.tracing.memory import MEMORY, Room
from errata.tracing.question import Question
from errata.tracing.settings import Kind, TraceSettings, window_around
from errata.tracing.trace import Trace


class Cell(NamedTuple):
    """One state to restore, with the blocks where the run differs and where outputs are fixed."""

    place: int  # index into `places`
    token: int
    block: int
    start: int  # the first block whose output differs
    until: int  # modules of the blocks after `start` and before this one are fixed


def trace_question(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    settings: TraceSettings,
    level: float,
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Trace:
    """Trace one question with noise scaled by `level`.

    The recorded runs take at most `memory` bytes, and so does a forward pass (but at least one
    row each); this affects speed, and results only by rounding.
    """
    first, end = question.subject
    embedding = model.get_submodule(family_of(model).embedding)
    noise = level * noise_of(settings, end - first, embedding.get_parameter("weight").shape[-1])
    deep = set(settings.kinds) != {"hidden"}
    room = Room.of(model, len(question.ids), len(question.targets), deep)
    size = room.runs_within(memory)
    groups = [noise[start : start + size] for start in range(0, len(noise), size)]
    steps = len(settings.kinds) * len(groups)
    parts: list[dict[str, Tensor]] = []

    def report(done: int, part: int, of: int) -> None:
        progress(done * of + part, steps * of)

    with frozen(model), torch.no_grad():
        for number, some in enumerate(groups):
            work = _Work(model, question, settings, some, room, memory)
            parts.append({"baseline": work.baseline[1:]})
            for index, kind in enumerate(settings.kinds):
                done = number * len(settings.kinds) + index
                parts[-1][kind] = work.traced(kind, partial(report, done))
    logs = {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}
    return _trace_of(tokenizer, work, level, logs)


def _trace_of(
    tokenizer: PreTrainedTokenizerBase, work: _Work, level: float, logs: dict[str, Tensor]
) -> Trace:
    """Build a trace from log-probabilities (…, samples, answer tokens) per kind."""
    low, high, question = logs.pop("baseline"), work.baseline[0], work.question
    several = len(question.targets) > 1
    return Trace(
        text=question.text,
        tokens=question.tokens,
        subject=question.subject,
        answer=tokenizer.decode(question.targets).strip(),
        said=tokenizer.decode(question.spoken).strip(),
        places=work.places,
        window=work.window,
        level=level,
        scores={kind: _whole(held) for kind, held in logs.items()},
        low=_whole(low),
        high=float(_whole(high)),
        first_scores={k: _whole(held[..., :1]) for k, held in logs.items()} if several else {},
        first_low=_whole(low[:, :1]) if several else None,
        first_high=float(high[0].exp()) if several else None,
        made={"settings": work.settings.model_dump(mode="json"), "versions": versions()},
    )


def _whole(logs: Tensor) -> NDArray[np.float32]:
    """Turn log-probabilities (…, answer tokens) into probabilities of whole answers (…)."""
    return np.asarray(logs.double().sum(-1).exp().float().numpy())


@dataclass
class _Work:
    """Traces one question with a group of its corrupted runs."""

    model: PreTrainedModel
    question: Question
    settings: TraceSettings
    noise: NDArray[np.float64]  # (samples, subject tokens, d), scaled
    room: Room
    memory: int

    def __post_init__(self) -> None:
        self.family, self.samples = family_of(self.model), len(self.noise)
        self.count = self.family.block_count(self.model)
        self.window = self.settings.window_for(self.count)
        first, end = self.question.subject
        last_only = self.settings.subject_last_only
        self.places = (end - 1,) if last_only else tuple(range(self.question.length))
        embedding = self.model.get_submodule(self.family.embedding)
        self.changes = {embedding: corrupting(self.noise, first, self.settings.replace)}
        ids = torch.tensor([self.question.ids], device=self.model.device)
        self.ids = ids.expand(1 + self.samples, -1)

    @cached_property
    def recording(self) -> RecordedRun:
        """The clean run in row 0, the corrupted runs after it."""
        return RecordedRun.of(self.model, self.ids, self.changes)

    @cached_property
    def baseline(self) -> Tensor:
        """Log-probabilities with nothing restored: (1 + samples, answer tokens)."""
        rows = range(1 + self.samples)
        place = self.question.length - 1
        suffix = self.recording.suffix_run(self.count - 1, place, rows)
        return self._read(suffix.run(suffix.states, self._keep(len(rows), place)), len(rows))

    def traced(self, kind: Kind, progress: Progress) -> Tensor:
        """Return log-probabilities: (places, blocks, samples, answer tokens)."""
        shape = (len(self.places), self.count, self.samples, len(self.question.targets))
        logs = self.baseline[1:].expand(shape).clone()
        modules = self._modules(kind)
        parts = (
            contributions(self.model, self.ids, modules, self.changes)
            if modules is not None
            else None
        )
        for (token, start), cells in groupby(self._cells(kind), key=lambda c: (c.token, c.start)):
            held = list(cells)
            found = self._run(kind, token, start, held, modules, parts)
            for cell, scores in zip(held, found, strict=True):
                logs[cell.place, cell.block] = scores
            progress(held[-1].place * self.count + held[-1].block + 1, logs[..., 0, 0].numel())
        return logs

    def _modules(self, kind: Kind) -> list[nn.Module] | None:
        if kind == "hidden":
            return None
        of = self.family.mlp if kind.endswith("mlp") else self.family.attention
        return [of(self.model, block) for block in range(self.count)]

    def _cells(self, kind: Kind) -> Iterator[Cell]:
        """Yield the cells that can affect the answer, by token, then by `start`."""
        for place, token in enumerate(self.places):
            if token < self.question.subject[0]:
                continue  # not corrupted
            for block in range(self.count):
                blocks = range(block, block + 1)
                if kind in ("mlp", "attn"):
                    blocks = window_around(block, self.window, self.count)
                elif kind != "hidden":
                    blocks = range(block, self.count)
                if blocks.start == self.count - 1 and token < self.question.length - 1:
                    continue  # no later attention reads this state
                yield Cell(place, token, block, blocks.start, blocks.stop)

    def _run(
        self,
        kind: Kind,
        token: int,
        start: int,
        cells: Sequence[Cell],
        modules: Sequence[nn.Module] | None,
        parts: Contributions | None,
    ) -> Tensor:
        """Return log-probabilities of cells that differ only in `until`.

        Shape: (cells, samples, answer tokens)."""
        rows = [(cell, sample) for cell in cells for sample in range(self.samples)]
        suffix = self.ids.shape[1] - token
        at_once = self.room.rows_within(self.memory, suffix)
        found = []
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            numbers = [1 + sample for _, sample in some]
            resumed = self.recording.suffix_run(start, token, numbers)
            states = resumed.states.clone()
            if kind in ("mlp", "attn"):
                assert parts is not None
                states[:, 0] = parts.exchanged[start][numbers, token]
            else:
                states[:, 0] = self.recording.states[start][0, token]
            held = {}
            if modules is not None and parts is not None:
                place = 0 if resumed.whole is None else token
                held = self._held(kind, token, place, some, modules, parts)
            with steered(held, len(some)):
                logits = resumed.run(states, self._keep(len(some), token))
            found.append(self._read(logits, len(some)))
        return torch.cat(found).view(len(cells), self.samples, -1)

    def _held(
        self,
        kind: Kind,
        token: int,
        place: int,
        rows: Sequence[tuple[Cell, int]],
        modules: Sequence[nn.Module],
        parts: Contributions,
    ) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """Return the hooks that fix modules of later blocks to clean or corrupted outputs.

        `place` is the index of the token in the rows that run.
        """
        start, device, held = rows[0][0].start, self.ids.device, {}
        for block in range(start + 1, max(cell.until for cell, _ in rows)):
            lines = [line for line, (cell, _) in enumerate(rows) if block < cell.until]
            sources = [0 if kind in ("mlp", "attn") else 1 + rows[line][1] for line in lines]
            values = parts.outputs[block][sources, token]  # (lines, d)
            held[modules[block]] = _holding(torch.tensor(lines, device=device), place, values)
        return held

    def _keep(self, rows: int, token: int) -> Tensor:
        """Return the mask of the positions that predict the answer: (rows, tokens from `token`)."""
        keep = torch.zeros(rows, self.ids.shape[1] - token, dtype=torch.bool)
        keep[:, self.question.length - 1 - token :] = True
        return keep.to(self.ids.device)

    def _read(self, logits: Tensor, rows: int) -> Tensor:
        """Return log-probabilities of the answer's tokens: (rows, answer tokens), on the CPU."""
        logs = logits.float().log_softmax(-1).view(rows, len(self.question.targets), -1)
        targets = torch.tensor(self.question.targets, device=logits.device)
        return logs.gather(-1, targets.expand(rows, -1)[..., None])[..., 0].cpu()


def _holding(lines: Tensor, place: int, values: Tensor) -> Callable[[Tensor], Tensor]:
    def hold(state: Tensor) -> Tensor:
        state = state.clone()
        state[lines, place] = values
        return state

    return hold
