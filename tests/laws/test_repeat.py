"""Promises 8 and 11: the same edit again is the same patch, here, elsewhere, and after anything."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from errata.data.request import EditRequest
from errata.methods import METHODS
from errata.methods.closed_form.prefixes import STARTS, sample_prefixes
from errata.methods.edit import compute_edit
from errata.metrics.likelihood import likelihoods
from laws.bench import (
    SHAPES,
    apply_edit,
    edited_model,
    moments_of,
    over_families,
    over_methods,
    over_shapes,
    patch_of,
    quick,
    random_patch,
    weights,
)
from tiny import FACTS

HERE = Path(__file__).resolve().parent
SAMPLED = {"prefix_lengths": (2, 3), "prefix_seed": 3}


def file_hash(model_type: str, method_name: str, path: Path) -> str:
    """Edit two facts behind sampled prefixes and save; return the digest of the file."""
    edited = edited_model(model_type)
    method = quick(method_name, contexts=SAMPLED)
    patch = compute_edit(edited, FACTS[:2], method, moments=moments_of(model_type))
    return hashlib.sha256(patch.save(path).read_bytes()).hexdigest()


def every_hash(folder: Path) -> dict[tuple[str, str], str]:
    """Edit with every method on every family, in an order of names."""
    return {
        (model_type, name): file_hash(model_type, name, folder / f"{model_type}-{name}.safetensors")
        for model_type in sorted(SHAPES)
        for name in sorted(METHODS)
    }


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What another process makes, with another hash seed."""
    code = (
        "import sys, pathlib, torch; torch.set_num_threads(1)\n"
        "from laws.test_repeat import every_hash\n"
        "for pair, digest in every_hash(pathlib.Path(sys.argv[1])).items():\n"
        "    print(*pair, digest, sep=';')"
    )
    paths = [str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONHASHSEED": "4242",
    }
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(";") for line in done.stdout.splitlines()]
    return {(model_type, name): digest for model_type, name, digest in lines}


@pytest.mark.parametrize("model_type", SHAPES)
@over_methods
def test_editing_twice_here_and_once_elsewhere_makes_one_file(
    model_type: str,
    method_name: str,
    elsewhere: dict[tuple[str, str], str],
    tmp_path: Path,
) -> None:
    first = file_hash(model_type, method_name, tmp_path / "first.safetensors")
    torch.manual_seed(99)
    second = file_hash(model_type, method_name, tmp_path / "second.safetensors")
    assert first == second == elsewhere[model_type, method_name]


@over_shapes
@over_methods
def test_an_edit_after_an_undone_one_is_the_edit(model_type: str, method_name: str) -> None:
    edited, moments = edited_model(model_type), moments_of(model_type)
    edited.apply(random_patch(edited, 0))
    apply_edit(edited, FACTS[2:], quick(method_name), moments=moments)
    edited.undo()
    edited.undo()
    again = compute_edit(edited, FACTS[:2], quick(method_name), moments=moments)
    assert again == patch_of(model_type, method_name)


@over_shapes
@over_methods
def test_a_patch_repeats_what_its_provenance_says(model_type: str, method_name: str) -> None:
    """The prefixes that were sampled, given as a fixed list, make the same change."""
    edited, moments = edited_model(model_type), moments_of(model_type)
    sampled = compute_edit(edited, FACTS[:1], quick(method_name, contexts=SAMPLED), moments=moments)
    fixed = quick(method_name, contexts={"prefixes": sampled.provenance.prefixes})
    again = compute_edit(edited, sampled.provenance.requests, fixed, moments=moments)
    for name, update in sampled.updates.items():
        assert torch.equal(again.updates[name].delta(), update.delta())


@over_shapes
def test_sampling_prefixes_leaves_the_random_numbers_alone(model_type: str) -> None:
    edited = edited_model(model_type)

    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = numbers()
    seed()
    sample_prefixes(edited.model, edited.tokenizer, (2, 3), 7)
    assert numbers() == expected


@over_shapes
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no_bos"])
def test_prefixes_are_a_function_of_model_and_seed(model_type: str, bos: bool) -> None:
    edited = edited_model(model_type, bos=bos)
    lengths = (2, 3, 1, 2, 4, 3)
    first = sample_prefixes(edited.model, edited.tokenizer, lengths, 7)
    torch.manual_seed(5)
    edited.model.train()
    assert sample_prefixes(edited.model, edited.tokenizer, lengths, 7) == first
    assert sample_prefixes(edited.model, edited.tokenizer, lengths, 8) != first
    assert sample_prefixes(edited.model, edited.tokenizer, lengths[:2], 7) == first[:2]
    for index, prefix in enumerate(first):
        assert prefix.startswith(STARTS[index % len(STARTS)])
        assert prefix.endswith(". ")
        assert "<s>" not in prefix


@over_families
@over_methods
def test_an_edit_makes_its_target_likelier(model_type: str, method_name: str) -> None:
    """The sanity of it all: with room to move, the new answer rises and nothing else is needed."""
    # At the very token behind which it is asked for: random models hand little on between tokens.
    request = EditRequest(prompt="They all came to {}", subject="Velmora", target="Pell")
    edited, pairs = edited_model(model_type), [(request.text, request.answer)]
    (before,) = likelihoods(edited, pairs)
    search = {"steps": 12, "learning_rate": 1.0, "clamp": 20.0, "kl_weight": 0.0}
    weak = {"moment_weight": 1e-3, "ridge": 1e-4, "relative_threshold": True}
    known = type(quick(method_name)).model_fields
    method = quick(
        method_name,
        search={**search, "weight_decay": 0.0},
        contexts={"prefixes": ()},
        **{name: value for name, value in weak.items() if name in known},
    )
    unedited = weights(edited.model)
    apply_edit(edited, [request], method, moments=moments_of(model_type))
    (after,) = likelihoods(edited, pairs)
    assert after.nll < before.nll - 0.2
    assert weights(edited.model) != unedited
