"""The second moment: counted right, kept whole, never taken for another; and its null space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from errata.core.errors import ErrataError
from errata.methods.alphaedit import AlphaEdit
from errata.models.tokens import encode
from errata.statistics.measure import measure, token_rows
from errata.statistics.moment_file import SecondMomentIdentity
from errata.statistics.null_space import NullSpace
from errata.statistics.second_moment import SecondMoment
from laws.bench import closeness
from tiny import SENTENCES, tiny_model, tiny_tokenizer

IDENTITY = SecondMomentIdentity(
    weights="w" * 64,
    tokenizer="t" * 64,
    corpus="c" * 16,
    tokens=None,
    length=512,
    weight="model.layers.1.mlp.down_proj.weight",
    dtype="float32",
)


def moment(spectrum: list[float], count: int = 1000) -> SecondMoment:
    size = len(spectrum)
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0))).Q
    return SecondMoment(turn @ torch.tensor(spectrum).diag() @ turn.T, count, IDENTITY)


def projector(space: NullSpace) -> Tensor:
    return space.project(torch.eye(space.width, dtype=torch.float64))


def test_progress_is_told_in_tokens() -> None:
    told: list[tuple[int, int]] = []
    rows = [(1, 2, 3), (4, 5), (6,)]
    measure(tiny_model("llama"), rows, [1], budget=3, progress=lambda *now: told.append(now))
    assert told == [(1, 6), (4, 6), (6, 6)]


def test_a_corpus_without_text_is_refused() -> None:
    with pytest.raises(ErrataError, match="no text to measure"):
        measure(tiny_model("llama"), [], [1])


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no_bos"])
@pytest.mark.parametrize(("length", "most"), [(64, None), (5, None), (64, 50), (5, 12), (64, 1)])
def test_texts_are_cut_where_asked(bos: bool, length: int, most: int | None) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    rows = token_rows(tokenizer, SENTENCES, length, most)
    whole = [encode(tokenizer, text).ids[:length] for text in SENTENCES]
    if most is None:
        assert rows == whole
    else:
        assert sum(map(len, rows)) == most
        assert [ids[: len(row)] for row, ids in zip(rows, whole, strict=False)] == rows


def test_it_is_saved_and_loaded_exactly(tmp_path: Path) -> None:
    held, path = moment([0.1, 0.5, 2.0, 7.0]), tmp_path / "deep" / "moment.safetensors"
    held.save(path)
    loaded = SecondMoment.load(path, IDENTITY)
    assert torch.equal(loaded.matrix, held.matrix)
    assert (loaded.count, loaded.identity) == (held.count, held.identity)
    SecondMoment(held.matrix, 5, distinct=3).save(path)
    assert SecondMoment.load(path).identity is None
    assert (SecondMoment.load(path).count, SecondMoment.load(path).distinct) == (5, 3)


CHANGES: dict[str, Any] = {
    "weights": "x",
    "tokenizer": "x",
    "corpus": "x",
    "tokens": 7,
    "length": 7,
    "weight": "x",
    "dtype": "bfloat16",
}


@pytest.mark.parametrize("field", SecondMomentIdentity.model_fields)
def test_one_that_was_measured_otherwise_is_refused_by_name(field: str, tmp_path: Path) -> None:
    path = tmp_path / "moment.safetensors"
    moment([0.1, 0.5]).save(path)
    wanted = IDENTITY.with_values(**{field: CHANGES[field]})
    assert wanted.digest != IDENTITY.digest
    with pytest.raises(ErrataError, match=f"measured on something else: {field} ") as caught:
        SecondMoment.load(path, wanted)
    assert caught.value.message.count(" instead of ") == 1
    assert "errata stats" in caught.value.hints[0]


def test_a_moment_without_an_identity_is_rejected_when_one_is_expected(tmp_path: Path) -> None:
    SecondMoment(torch.eye(2), 9).save(tmp_path / "moment.safetensors")
    with pytest.raises(ErrataError, match="its identity is not recorded"):
        SecondMoment.load(tmp_path / "moment.safetensors", IDENTITY)


def header(**changes: Any) -> dict[str, str]:
    return {"errata": json.dumps({"count": 9, "identity": IDENTITY.model_dump(), **changes})}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"second_moment": torch.eye(3)}, None),
        ({"second_moment": torch.eye(3)}, {"errata": "{"}),
        ({"second_moment": torch.eye(3)}, {"errata": "[]"}),
        ({"second_moment": torch.eye(3)}, header(count="many")),
        ({"second_moment": torch.eye(3)}, header(identity={"weights": "w"})),
        ({"other": torch.eye(3)}, header()),
        ({"second_moment": torch.ones(3, 2)}, header()),
        ({"second_moment": torch.ones(3)}, header()),
        ({"second_moment": torch.eye(3, dtype=torch.int32)}, header()),
        ({"second_moment": torch.full((3, 3), float("nan"))}, header()),
    ],
    ids="no_header torn_header list count identity no_matrix oblong vector integers nan".split(),
)
def test_a_damaged_file_is_refused(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "moment.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ErrataError, match="second moment"):
        SecondMoment.load(path)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_torn_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "moment.safetensors"
    moment([0.1, 0.5]).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ErrataError, match="not a second moment") as caught:
        SecondMoment.load(path)
    assert caught.value.hints
    with pytest.raises(ErrataError, match="not a second moment"):
        SecondMoment.load(tmp_path / "nowhere.safetensors")


def test_solve_is_the_inverse() -> None:
    held, columns = moment([0.1, 0.5, 2.0, 7.0]), torch.eye(4)[:, :2]
    assert closeness(held.solve(columns), torch.linalg.inv(held.matrix.double())[:, :2]) < 1e-5


def test_the_null_space_is_what_lies_below_the_threshold() -> None:
    held = moment([0.001, 0.002, 0.03, 5.0, 9.0])
    space = held.null_space(0.01)
    assert space.dimension == 2
    assert space.gap == pytest.approx(15, rel=1e-3)
    assert (space.below, space.above) == pytest.approx((0.002, 0.03), rel=1e-3)
    P = projector(space)
    assert torch.allclose(P @ P, P, atol=1e-12)
    assert torch.allclose(P, P.T, atol=1e-12)
    energy = torch.linalg.eigvalsh(P @ held.matrix.double() @ P)
    assert energy.max() == pytest.approx(0.002, rel=1e-3)


def test_a_relative_threshold_is_a_share_of_the_largest() -> None:
    held = moment([0.001, 0.002, 0.03, 5.0, 10.0])
    assert held.null_space(0.004, relative=True).dimension == 3
    assert held.null_space(0.004, relative=True).threshold == pytest.approx(0.04, rel=1e-5)
    assert held.null_space(0.004).dimension == 2
    larger = SecondMoment(1000 * held.matrix, held.count)
    assert larger.null_space(0.004, relative=True).dimension == 3


def test_a_threshold_over_everything_leaves_all_room() -> None:
    space = moment([0.1, 0.2]).null_space(100.0)
    assert (space.dimension, space.gap) == (2, float("inf"))
    assert torch.equal(projector(space), torch.eye(2, dtype=torch.float64))


def test_a_threshold_under_everything_is_refused() -> None:
    with pytest.raises(ErrataError, match=r"no direction .* below 0.01 \(the smallest is 0.1\)"):
        moment([0.1, 0.2]).null_space(0.01)


def test_a_projector_is_read_back() -> None:
    space = moment([0.001, 0.002, 0.03, 5.0, 9.0]).null_space(0.01)
    again = NullSpace.from_projector(projector(space).float())
    assert again.dimension == space.dimension
    assert torch.allclose(projector(again), projector(space), atol=1e-6)
    with pytest.raises(ErrataError, match="not a projector"):
        NullSpace.from_projector(torch.eye(3) * 0.5)


@pytest.mark.parametrize(("count", "enough"), [(1, False), (7, False), (8, True), (1000, True)])
def test_alphaedit_wants_tokens_enough_to_see_every_direction(count: int, enough: bool) -> None:
    held = moment([0.001, 0.002, 5.0, 9.0], count)
    if enough:
        (note,) = AlphaEdit().notes(held, torch.ones(4, 1))
        assert note.startswith("null space 2 of 4 directions")
        return
    with pytest.raises(ErrataError, match=f"{count} tokens are too few") as caught:
        AlphaEdit().notes(held, torch.ones(4, 1))
    assert "at least 8 tokens" in caught.value.hints[0]


def test_a_cut_that_is_not_clear_is_noted() -> None:
    (clear,) = AlphaEdit().notes(moment([0.001, 5.0]), torch.ones(2, 1))
    (close,) = AlphaEdit().notes(moment([0.01999, 0.02001]), torch.ones(2, 1))
    assert "would change it" not in clear
    assert "would change it" in close
