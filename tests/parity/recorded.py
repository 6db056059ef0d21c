"""One model's part of a folder of recorded reference results, and how closely we must agree.

Everything that a comparison needs (cases, settings, templates, thresholds, sampled texts)
is read from the folder. Numbers are compared by their relative Frobenius difference,
‖ours - recorded‖ / ‖recorded‖, with the tolerances of the folder's own README (§5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import errata
from errata.models.families import Family, family_of
from errata.statistics.second_moment import SecondMoment

TOPICS = ("forward", "tokens", "cov", "rome", "memit", "alphaedit")
"""What every model must have; further files of the same form are compared where they exist."""

RTOL = {
    "states": 1e-5,  # hidden states, logits, second moment
    "key": 1e-4,  # keys, cur_z
    "z": 1e-4,
    "z on an edited model": 3e-4,
    "u without second moment": 1e-5,
    "u": 5e-4,
    "v": 5e-4,
    "delta_W": 5e-4,
    "P": 1e-4,
    "score": 1e-5,  # of causal traces
    "trace": 1e-4,  # a loss is a function of z
}


def close(actual: Tensor, expected: Tensor, rtol: float, floor: float = 0.0) -> float:
    """Return the relative Frobenius difference; raise `AssertionError` when it is above `rtol`.

    What is expected counts as at least `floor` large: for numbers made of larger ones, whose
    rounding they carry.
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.double()
    size = max(float(expected.norm()), floor)
    difference = float((actual - expected).norm()) / (size or 1.0)
    # Written so that NaN fails.
    assert difference <= rtol, f"differs by {difference:.3g}, allowed is {rtol:.3g}"
    return difference


@dataclass
class Part:
    """The tensors of a file whose names begin with `prefix`; it knows which were looked at."""

    tensors: dict[str, Tensor]
    prefix: str
    taken: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        self.taken.add(self.prefix + name)
        return self.tensors[self.prefix + name]

    def assert_all_taken(self) -> None:
        """Raise when the file holds something that no comparison looked at."""
        mine = {name for name in self.tensors if name.startswith(self.prefix)}
        assert mine, f"no tensor is called {self.prefix}…"
        assert self.taken == mine, f"never compared: {sorted(mine - self.taken)}"


@dataclass
class Recorded:
    """What a folder holds on one model, read when first asked for."""

    folder: Path
    name: str
    worst: dict[tuple[str, str], float] = field(default_factory=dict)
    """Per topic and quantity, the largest difference that was found."""

    def json(self, topic: str) -> Any:
        """Return the settings and scalars of a topic."""
        return read_json(self.folder / "goldens" / self.name / f"{topic}.json")

    def inputs(self, name: str) -> Any:
        """Return what was fed to all models."""
        return read_json(self.folder / "inputs" / f"{name}.json")

    def tensors(self, topic: str, prefix: str = "") -> Part:
        """Return the tensors of a topic, or of one of its cases."""
        path = self.folder / "goldens" / self.name / f"{topic}.safetensors"
        assert path.is_file(), f"{path.name} of {self.name} is missing"
        return Part(load_file(path), prefix)

    def has(self, topic: str) -> bool:
        """Whether there is anything on a topic."""
        return any((self.folder / "goldens" / self.name).glob(f"{topic}.*"))

    def has_tensors(self, topic: str) -> bool:
        """Whether there are tensors on a topic."""
        return (self.folder / "goldens" / self.name / f"{topic}.safetensors").is_file()

    @cached_property
    def _loaded(self) -> errata.EditedModel:
        return errata.load(str(self.folder / "models" / self.name), dtype=torch.float32)

    def moved(self, folder: Path) -> Recorded:
        """Return the same model's results in another folder, without loading the model again."""
        other = Recorded(folder, self.name)
        other._loaded = self._loaded
        return other

    @property
    def model(self) -> PreTrainedModel:
        """The model, in float32."""
        return self._loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._loaded.tokenizer

    @property
    def family(self) -> Family:
        """Its family."""
        return family_of(self.model)

    def moments(self) -> dict[int, SecondMoment]:
        """Return the recorded second moments by block."""
        tensors, layers = self.tensors("cov"), self.json("cov")["layers"]
        return {
            int(block): SecondMoment(tensors[f"layer{block}.moment"], layer["token_count"])
            for block, layer in layers.items()
        }

    def hold(
        self, topic: str, kind: str, what: str, actual: Any, expected: Any, floor: float = 0.0
    ) -> None:
        """Compare under the tolerance of a kind of quantity, and remember the difference."""
        ours, theirs = torch.as_tensor(actual), torch.as_tensor(expected)
        try:
            difference = close(ours, theirs, RTOL[kind], floor)
        except AssertionError as error:
            raise AssertionError(f"{self.name}, {topic}, {what}: {error}") from None
        self.worst[topic, kind] = max(difference, self.worst.get((topic, kind), 0.0))

    def hold_each(
        self, topic: str, kind: str, what: str, ours: Sequence[float], theirs: Sequence[float]
    ) -> None:
        """Compare numbers one by one under the tolerance of a kind."""
        for i, (number, expected) in enumerate(zip(ours, theirs, strict=True)):
            self.hold(topic, kind, f"{what} {i}", number, expected)

    def hold_trace(self, topic: str, what: str, ours: Tensor, theirs: Tensor) -> None:
        """Compare loss rows (evaluations, 4) column by column.

        All columns come from log-probabilities of some nats, so a loss that is nearly zero is
        held to 2e-6 nats, no closer.
        """
        assert ours.shape == theirs.shape, (
            f"{what}: {tuple(ours.shape)} is not {tuple(theirs.shape)}"
        )
        floor = 0.02 * len(theirs) ** 0.5
        for column, name in enumerate(("total", "NLL", "KL", "decay")):
            mine, expected = ours[:, column], theirs[:, column]
            self.hold(topic, "trace", f"{what}, {name}", mine, expected, floor)


def read_json(path: Path) -> Any:
    """Read a file of the folder; raise `AssertionError` when it is missing."""
    assert path.is_file(), f"{path.parent.name}/{path.name} is missing"
    return json.loads(path.read_text(encoding="utf-8"))


def models_in(folder: Path) -> list[str]:
    """Return the models with results in a folder; raise `AssertionError` when it is not whole."""
    names = sorted(path.name for path in (folder / "goldens").glob("*") if path.is_dir())
    assert names, f"{folder} holds no goldens/<model>"
    for name in names:
        assert (folder / "models" / name / "config.json").is_file(), f"models/{name} is missing"
        for topic in TOPICS:
            path = folder / "goldens" / name / f"{topic}.json"
            assert path.is_file(), f"goldens/{name} has no {path.name}"
    return names
