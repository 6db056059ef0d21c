"""`Trace`: the answer's probability when one state of a corrupted run is restored.

A trace is an immutable value: scores per kind, token, block and sample, their clean and corrupted
baselines, and provenance. It is stored as .npz or .safetensors (arrays and one JSON string), so
NumPy alone can read it. Nothing here runs a model; `causal` computes traces.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errata.core.errors import ErrataError
from errata.core.files import replacing
from errata.metrics.scores import Score, intervals
from errata.tracing.settings import Kind

Array = NDArray[np.float32]
Scores = dict[str, Array]

META = "meta"
"""Key of the JSON string in a file."""
SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True, eq=False)
class Trace:
    """One fact's causal trace."""

    text: str
    """The prompt."""
    tokens: tuple[str, ...]
    """Display form of its tokens."""
    subject: tuple[int, int]
    """Token range of the subject: start, and one past the end."""
    answer: str
    """The answer whose probability is scored."""
    said: str
    """The greedy continuation, up to the first token that differs from the answer."""
    places: tuple[int, ...]
    """Token positions at which states were restored."""
    window: int
    """Number of blocks whose MLP or attention was restored together."""
    level: float
    """Scale of the noise."""
    scores: Scores
    """Per kind (places, blocks, samples): the answer's probability with the state restored."""
    low: Array
    """(samples,): probability of the answer in the corrupted runs."""
    high: float
    """Probability of the answer in the clean run."""
    first_scores: Scores = field(default_factory=dict)
    """The same for the answer's first token, if it has several."""
    first_low: Array | None = None
    first_high: float | None = None
    made: dict[str, Any] = field(default_factory=dict)
    """Provenance: settings, model, versions."""

    @property
    def known(self) -> bool:
        """Whether greedy decoding gives the answer."""
        return self.said == self.answer

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of states that were restored."""
        return tuple(self.scores)  # type: ignore[arg-type]

    @property
    def blocks(self) -> int:
        """Number of blocks of the model."""
        return next(iter(self.scores.values())).shape[1]

    @property
    def total_effect(self) -> float:
        """The total effect: `high` minus the mean of `low`."""
        return self.high - float(self.low.mean())

    def mean(self, kind: str) -> NDArray[np.float64]:
        """Return the mean over samples: (places, blocks)."""
        return self.scores[kind].mean(-1, dtype=np.float64)

    def effect(self, kind: str) -> NDArray[np.float64]:
        """Return the indirect effect of restoring each state: (places, blocks)."""
        return self.mean(kind) - float(self.low.mean(dtype=np.float64))

    def interval(self, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the bounds of a 95 % interval of the mean over samples: (places, blocks) each."""
        return intervals(np.moveaxis(self.scores[kind], -1, 0))

    def as_json(self) -> dict[str, Any]:
        """Return all fields for `--json`, scores as {value, low, high, n}."""
        found = self._meta()
        low, high = intervals(self.low)
        found["low"] = _score(float(self.low.mean()), float(low), float(high), len(self.low))
        found["known"], found["total_effect"] = self.known, self.total_effect
        found["scores"] = {}
        for kind in self.kinds:
            mean, (lows, highs) = self.mean(kind), self.interval(kind)
            found["scores"][kind] = [
                [
                    _score(float(mean[p, b]), float(lows[p, b]), float(highs[p, b]), len(self.low))
                    for b in range(self.blocks)
                ]
                for p in range(len(self.places))
            ]
        if self.first_scores:
            means = {kind: array.mean(-1).tolist() for kind, array in self.first_scores.items()}
            assert self.first_low is not None
            found["first_token"] = {
                "low": float(self.first_low.mean()),
                "high": self.first_high,
                "scores": means,
            }
        return found

    def _meta(self) -> dict[str, Any]:
        arrays = ("scores", "first_scores", "low", "first_low")
        return {key: value for key, value in asdict(self).items() if key not in arrays}

    def save(self, path: Path) -> None:
        """Write the trace atomically as .npz or .safetensors."""
        arrays: dict[str, Array] = {"low": self.low}
        arrays |= {f"scores.{kind}": array for kind, array in self.scores.items()}
        arrays |= {f"first.{kind}": array for kind, array in self.first_scores.items()}
        if self.first_low is not None:
            arrays["first_low"] = self.first_low
        meta = json.dumps(self._meta(), ensure_ascii=False)
        _check_suffix(path)
        with replacing(path) as temporary:
            if path.suffix == ".npz":
                with temporary.open("wb") as file:
                    np.savez_compressed(file, **{META: np.array(meta)}, **arrays)  # type: ignore[arg-type]
            else:
                from safetensors.numpy import save

                held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
                temporary.write_bytes(save(held, {META: meta}))

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace; raises `ErrataError` if the file is not a trace."""
        _check_suffix(path)
        try:
            meta, arrays = _read(path)
            values = json.loads(meta)
            values |= {name: tuple(values[name]) for name in ("tokens", "subject", "places")}
            return cls(
                **values,
                scores=_named("scores.", arrays),
                first_scores=_named("first.", arrays),
                low=arrays["low"],
                first_low=arrays.get("first_low"),
            )
        except Exception as error:  # numpy and safetensors raise various types
            raise ErrataError(f"{path} is not a trace: {error}", "is the file truncated?") from None


def _score(value: float, low: float, high: float, n: int) -> dict[str, Any]:
    return Score(value=value, low=low, high=high, n=n).as_json()


def _named(prefix: str, arrays: dict[str, Array]) -> Scores:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ErrataError(
            f"a trace cannot be saved as {path.name}",
            f"use one of the suffixes {', '.join(SUFFIXES)}",
        )


def _read(path: Path) -> tuple[str, dict[str, Array]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        return str(arrays.pop(META)), arrays
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata()[META], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
