"""Packed second moments: a quarter of the space, and what editors read from C hardly changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.core.errors import ErrataError
from errata.data.corpus import Corpus
from errata.patches.edited_model import EditedModel
from errata.statistics.second_moment import SecondMoment
from errata.statistics.store import Store
from laws.bench import closeness, edited_model
from tiny import SENTENCES

SIZE = 48


def moment(strong: float = 100.0) -> SecondMoment:
    """A moment with directions of very different strength, as in real models."""
    torch.manual_seed(0)
    keys = torch.randn(40 * SIZE, SIZE) * torch.logspace(-2, 0, SIZE)
    keys[:, 0] *= strong
    mixed = keys @ torch.linalg.qr(torch.randn(SIZE, SIZE)).Q
    return SecondMoment(mixed.T @ mixed / len(mixed), len(mixed))


def packed(original: SecondMoment, folder: Path) -> SecondMoment:
    original.save(folder / "packed.safetensors", packed=True)
    return SecondMoment.load(folder / "packed.safetensors")


def test_it_takes_a_quarter_of_the_space_and_keeps_the_header(tmp_path: Path) -> None:
    original = moment()
    original.save(tmp_path / "whole.safetensors")
    found = packed(original, tmp_path)
    assert found.count == original.count and found.identity == original.identity
    sizes = [sum(t.nbytes for t in load_file(p).values()) for p in sorted(tmp_path.iterdir())]
    assert sizes[0] < sizes[1] * 0.28


@pytest.mark.parametrize("strong", [1.0, 100.0])
def test_what_editors_read_hardly_changes(strong: float, tmp_path: Path) -> None:
    original = moment(strong)
    found, columns = packed(original, tmp_path), torch.randn(SIZE, 5, dtype=torch.float64)
    assert closeness(found.matrix, original.matrix) < 2**-11
    assert closeness(found.solve(columns), original.solve(columns)) < 2**-8
    share = original.null_space_of(0.5).basis, found.null_space_of(0.5).basis
    overlap = torch.linalg.svdvals(share[0].T.double() @ share[1].double())
    assert float(overlap.min()) > 1 - 1e-4


def test_a_moment_of_too_few_keys_cannot_be_packed(tmp_path: Path) -> None:
    few = SecondMoment(torch.ones(4, 4), 1)
    with pytest.raises(ErrataError, match="is singular"):
        few.save(tmp_path / "few.safetensors", packed=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["short", "double", "not finite"])
def test_a_packed_file_that_is_damaged_is_refused(fault: str, tmp_path: Path) -> None:
    packed(moment(), tmp_path)
    path = tmp_path / "packed.safetensors"
    tensors = load_file(path)
    if fault == "short":
        tensors["factor"] = tensors["factor"][:-1].clone()
    elif fault == "double":
        tensors["factor"] = tensors["factor"].double()
    else:
        tensors["scale"][0] = torch.inf
    save_file(tensors, path, {"errata": '{"count": 9, "identity": null}'})
    with pytest.raises(ErrataError, match="is not a second moment"):
        SecondMoment.load(path)


def test_shipped_moments_are_found_and_own_ones_come_first(tmp_path: Path) -> None:
    edited, corpus = edited_model("llama"), Corpus("text", SENTENCES)
    shipped = Store(tmp_path / "shipped", shipped=tmp_path / "none")
    (first,) = shipped.get(edited, corpus, [1]).values()
    store = Store(tmp_path / "own", shipped=tmp_path / "shipped")
    assert _digest(store, edited) == first.digest
    assert store.missing(edited, corpus, [1]) == [] and store.headers() == []
    (path,) = (tmp_path / "shipped").glob("*/*.safetensors")
    own = SecondMoment(2 * first.matrix, first.count, first.identity)
    own.save(tmp_path / "own" / path.parent.name / path.name)
    assert _digest(store, edited) == own.digest
    assert _digest(Store(tmp_path / "empty", shipped=tmp_path / "none"), edited) is None


def _digest(store: Store, edited: EditedModel) -> str | None:
    found = store.best(edited, [1])
    return None if found is None else found[1].digest
