"""Causal tracing: restore one state of a corrupted run, see how much of the answer comes back.

The subject's embeddings are corrupted; at one token and block the clean run's state is put back
(arXiv 2202.05262, section 2.1), for every token and block, and for five kinds of state:

- hidden: the block's output,
- mlp, attn: what the MLP or the attention contributes, in a window of blocks around it,
- frozen-mlp, frozen-attn: the block's output, while the MLPs (the attention) of all later blocks
  are held, at that token, at what they contribute in the corrupted run (appendix B.2).

Every cell equals a full run with that one state restored, but only what the state can reach is
computed: the corrupted run is kept, and restarted behind the first block that differs and from
the restored token on. Where nothing reaches the answer, nothing is run. An exchanged MLP
or attention output changes its own block at that token alone, so that block is not run
again either (see `recording.contributions`). In families with a norm behind the MLP what is
restored or held is the module's own output, before the norm; as the norm works on each token
alone, restoring it behind the norm would be the same.

Differs from kmeng01/rome: in replace mode the score with nothing restored is that of replaced
embeddings, as in the cells; an answer of several tokens is scored as a whole, besides.
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
    """One state to restore: from which block on the run differs, until where outputs are held."""

    place: int  # index into the places that are traced
    token: int
    block: int
    start: int  # the first block whose output differs
    until: int  # modules of the blocks behind `start` and before this one are held


def trace_question(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    settings: TraceSettings,
    level: float,
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Trace:
    """Trace one question; `level` is what the noise is multiplied by.

    What is kept of the runs takes at most `memory` bytes, and so does a forward pass (at least
    a row each); this changes speed, not results beyond rounding.
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

    def tell(done: int, part: int, of: int) -> None:
        progress(done * of + part, steps * of)

    with frozen(model), torch.no_grad():
        for number, some in enumerate(groups):
            work = _Work(model, question, settings, some, room, memory)
            parts.append({"baseline": work.baseline[1:]})
            for index, kind in enumerate(settings.kinds):
                done = number * len(settings.kinds) + index
                parts[-1][kind] = work.traced(kind, partial(tell, done))
    logs = {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}
    return _trace_of(tokenizer, work, level, logs)


def _trace_of(
    tokenizer: PreTrainedTokenizerBase, work: _Work, level: float, logs: dict[str, Tensor]
) -> Trace:
    """Make a trace of log-probabilities (…, samples, answer tokens) per kind."""
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
    """Turn log-probabilities (…, answer tokens) into those of whole answers, as probabilities."""
    return np.asarray(logs.double().sum(-1).exp().float().numpy())


@dataclass
class _Work:
    """One question at work, with some of its corrupted runs."""

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
        """The clean run in row 0, the corrupted ones behind it."""
        return RecordedRun.of(self.model, self.ids, self.changes)

    @cached_property
    def baseline(self) -> Tensor:
        """Log-probabilities with nothing restored: (1 + samples, answer tokens)."""
        rows = range(1 + self.samples)
        place = self.question.length - 1
        tail = self.recording.tail(self.count - 1, place, rows)
        return self._read(tail.run(tail.states, self._keep(len(rows), place)), len(rows))

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
        """Yield the cells that can change the answer, by token, then by where they start."""
        for place, token in enumerate(self.places):
            if token < self.question.subject[0]:
                continue  # what stands there is not corrupted
            for block in range(self.count):
                blocks = range(block, block + 1)
                if kind in ("mlp", "attn"):
                    blocks = window_around(block, self.window, self.count)
                elif kind != "hidden":
                    blocks = range(block, self.count)
                if blocks.start == self.count - 1 and token < self.question.length - 1:
                    continue  # nothing behind the last block looks at it
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
        """Run cells that differ only in where they end: (cells, samples, answer tokens)."""
        rows = [(cell, sample) for cell in cells for sample in range(self.samples)]
        suffix = self.ids.shape[1] - token
        at_once = self.room.rows_within(self.memory, suffix)
        found = []
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            numbers = [1 + sample for _, sample in some]
            tail = self.recording.tail(start, token, numbers)
            states = tail.states.clone()
            if kind in ("mlp", "attn"):
                assert parts is not None
                states[:, 0] = parts.exchanged[start][numbers, token]
            else:
                states[:, 0] = self.recording.states[start][0, token]
            held = {}
            if modules is not None and parts is not None:
                held = self._held(kind, token, some, modules, parts)
            with steered(held):
                logits = tail.run(states, self._keep(len(some), token))
            found.append(self._read(logits, len(some)))
        return torch.cat(found).view(len(cells), self.samples, -1)

    def _held(
        self,
        kind: Kind,
        token: int,
        rows: Sequence[tuple[Cell, int]],
        modules: Sequence[nn.Module],
        parts: Contributions,
    ) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """Return what holds the modules of later blocks at clean or corrupted values."""
        start, device, held = rows[0][0].start, self.ids.device, {}
        for block in range(start + 1, max(cell.until for cell, _ in rows)):
            lines = [line for line, (cell, _) in enumerate(rows) if block < cell.until]
            sources = [0 if kind in ("mlp", "attn") else 1 + rows[line][1] for line in lines]
            values = parts.outputs[block][sources, token]  # (lines, d)
            held[modules[block]] = _holding(torch.tensor(lines, device=device), values)
        return held

    def _keep(self, rows: int, token: int) -> Tensor:
        """Return the mask of the places where the answer is read: (rows, tokens from `token`)."""
        keep = torch.zeros(rows, self.ids.shape[1] - token, dtype=torch.bool)
        keep[:, self.question.length - 1 - token :] = True
        return keep.to(self.ids.device)

    def _read(self, logits: Tensor, rows: int) -> Tensor:
        """Return log-probabilities of the answer's tokens: (rows, answer tokens), on the CPU."""
        logs = logits.float().log_softmax(-1).view(rows, len(self.question.targets), -1)
        targets = torch.tensor(self.question.targets, device=logits.device)
        return logs.gather(-1, targets.expand(rows, -1)[..., None])[..., 0].cpu()


def _holding(lines: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
    def hold(state: Tensor) -> Tensor:
        state = state.clone()
        state[lines, 0] = values
        return state

    return hold
