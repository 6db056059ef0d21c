"""A patch file from anywhere is read, or refused in words; nothing of it is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.core.errors import ErrataError
from errata.patches.weight_patch import WeightPatch
from laws.bench import edited_model, random_patch

Tensors = dict[str, Tensor]
Header = dict[str, Any]


@pytest.fixture(scope="module")
def patch() -> WeightPatch:
    return random_patch(edited_model("gpt2"), 0)


@pytest.fixture
def path(patch: WeightPatch, tmp_path: Path) -> Path:
    return patch.save(tmp_path / "patch.safetensors")


def spoil(path: Path, change: Callable[[Tensors, Header], None]) -> None:
    """Write the file again with something changed."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["errata"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, header)
    save_file(tensors, path, {"errata": json.dumps(header)})


def first(tensors: Tensors, letter: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(f".{letter}"))


def test_written_again_unchanged_it_is_the_patch(patch: WeightPatch, path: Path) -> None:
    spoil(path, lambda tensors, header: None)
    assert WeightPatch.load(path) == patch


def put(letter: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensors, Header], None]:
    def change(tensors: Tensors, header: Header) -> None:
        name = first(tensors, letter)
        tensors[name] = value(tensors[name]).contiguous()

    return change


def drop(letter: str) -> Callable[[Tensors, Header], None]:
    return lambda tensors, header: tensors.pop(first(tensors, letter))


def say(**fields: Any) -> Callable[[Tensors, Header], None]:
    return lambda tensors, header: header.update(fields)


def spotted(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[0, 0] = value
        return tensor

    return change


def join(letter: str) -> Callable[[Tensors, Header], None]:
    """Put one more tensor beside the whole parts of a weight."""

    def change(tensors: Tensors, header: Header) -> None:
        tensors[first(tensors, "A").removesuffix("A") + letter] = torch.ones(2, 2)

    return change


HOSTILE = {
    "half precision": (put("A", Tensor.half), "not part of a patch"),
    "integers": (put("R", Tensor.int), "not part of a patch"),
    "a vector": (put("K", lambda K: K[0]), "not part of a patch"),
    "nan": (put("R", spotted(float("nan"))), "non-finite"),
    "infinity": (put("K", spotted(float("inf"))), "non-finite"),
    "no A": (drop("A"), "are inconsistent"),
    "no K": (drop("K"), "are inconsistent"),
    "short R": (put("R", lambda R: R[:, :1]), "are inconsistent"),
    "narrow A": (put("A", lambda A: A[:, :3]), "are inconsistent"),
    "short K": (put("K", lambda K: K[:3]), "are inconsistent"),
    "another letter": (
        lambda t, h: t.update({"weight.Q": torch.ones(2, 2)}),
        "not part of a patch",
    ),
    "two letters": (join("RA"), "not part of a patch"),
    "no letter": (join(""), "not part of a patch"),
    "another format": (say(format=99), "an unknown patch format"),
    "no format": (lambda t, h: h.pop("format"), "an unknown patch format"),
    "unknown fields": (say(surprise=1), "surprise"),
    "no base": (lambda t, h: h.pop("base"), "base: Field required"),
    "a base of numbers": (say(base=[1]), "base"),
    "broken requests": (say(requests=[{"prompt": "x"}]), "requests.0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_patch_of_ours_is_refused(case: str, path: Path) -> None:
    change, message = HOSTILE[case]
    spoil(path, change)
    with pytest.raises(ErrataError, match=message):
        WeightPatch.load(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 200, -1])
def test_a_torn_file_is_refused(keep: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ErrataError, match="is not a patch") as caught:
        WeightPatch.load(path)
    assert caught.value.hints


@pytest.mark.parametrize("header", [None, {}, {"errata": "{"}, {"errata": "[1]"}, {"errata": "7"}])
def test_safetensors_of_something_else_are_refused(
    header: dict[str, str] | None, tmp_path: Path
) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors", header)
    with pytest.raises(ErrataError, match=r"is not a patch|unknown patch format"):
        WeightPatch.load(tmp_path / "model.safetensors")


def test_a_file_that_is_not_there_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ErrataError, match="there is no patch at") as caught:
        WeightPatch.load(tmp_path / "nowhere.safetensors")
    assert "errata ls patches" in caught.value.hints[0]
    with pytest.raises(ErrataError, match="is not a patch"):
        WeightPatch.load(tmp_path)


def test_a_patch_that_cannot_be_saved_leaves_nothing(patch: WeightPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ErrataError, match="cannot write"):
        patch.save(tmp_path / "file" / "patch.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_its_size_is_that_of_its_numbers(patch: WeightPatch, path: Path) -> None:
    assert patch.size < path.stat().st_size < patch.size + 4096
