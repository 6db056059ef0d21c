"""Promises 3 and 4: the small systems we solve are the published ones, in float64, per method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.core.errors import ErrataError
from errata.methods.alphaedit import AlphaEdit
from errata.methods.closed_form.solve import GrowingSystem
from errata.methods.closed_form.target_search import Targets
from errata.methods.edit import compute_edit
from errata.methods.memit import Memit
from errata.methods.rome import Rome
from errata.statistics.second_moment import SecondMoment
from laws.bench import (
    apply_edit,
    closeness,
    edited_model,
    moments_of,
    over_families,
    over_methods,
    quick,
    rewrites_of,
)
from plain import alphaedit, edit_blocks, edit_ranks, memit, projector, rome
from tiny import FACTS, width

D_IN, D_OUT = 14, 9
COUNTS = (1, 5, D_IN, 3 * D_IN)  # fewer edits than d_in, as many, more
SOURCE = 11


def drawn(*shape: int, seed: int = SOURCE) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def blocks(keys: Tensor) -> list[Tensor]:
    """Cut keys into batches of four, as earlier patches hold them."""
    return list(keys.split(4, dim=1)) if keys.shape[1] else []


def unchanged(keys: Tensor) -> Tensor:
    return keys


def moment_of(spectrum: Tensor) -> SecondMoment:
    turn = torch.linalg.qr(drawn(D_IN, D_IN, seed=3)).Q
    return SecondMoment((turn @ spectrum.double().diag() @ turn.T), 1000)


MOMENT = moment_of(torch.logspace(-3, 1, D_IN))


def dense_memit(K: Tensor, C: Tensor, weight: float, earlier: Tensor | None = None) -> Tensor:
    """Return A = (solve(λ C + K_p K_pᵀ + K Kᵀ, K))ᵀ."""
    system = weight * C + K @ K.T
    if earlier is not None:
        system = system + earlier @ earlier.T
    return torch.linalg.solve(system, K).T


def dense_alphaedit(K: Tensor, P: Tensor, ridge: float, earlier: Tensor | None = None) -> Tensor:
    """Return A = (solve(P (K Kᵀ + S) + ε I, P K))ᵀ, S = K_p K_pᵀ."""
    memory = torch.zeros_like(P) if earlier is None else earlier @ earlier.T
    return torch.linalg.solve(
        P @ (K @ K.T + memory) + ridge * torch.eye(len(P), dtype=torch.float64), P @ K
    ).T


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("weight", [0.1, 15000.0])
def test_memit_is_its_dense_form(count: int, weight: float) -> None:
    K = drawn(D_IN, count)
    A = Memit(moment_weight=weight).read(K, K, MOMENT, None)
    assert closeness(A, dense_memit(K, MOMENT.matrix, weight)) < 1e-9
    assert A.dtype == torch.float64


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("earlier", [1, 6, 2 * D_IN])
def test_memit_with_history_is_its_dense_form(count: int, earlier: int) -> None:
    K, K_p = drawn(D_IN, count), drawn(D_IN, earlier, seed=5)
    A = Memit(moment_weight=2.0, history=True).read(K, K, MOMENT, blocks(K_p))
    assert closeness(A, dense_memit(K, MOMENT.matrix, 2.0, K_p)) < 1e-9


def test_memit_without_history_does_not_look_at_earlier_keys() -> None:
    K, K_p = drawn(D_IN, 4), drawn(D_IN, 6, seed=5)
    A = Memit(moment_weight=2.0).read(K, K, MOMENT, blocks(K_p))
    assert torch.equal(A, Memit(moment_weight=2.0).read(K, K, MOMENT, None))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("earlier", [None, 1, 6, 2 * D_IN])
def test_alphaedit_is_its_dense_form(count: int, earlier: int | None) -> None:
    K = drawn(D_IN, count)
    K_p = None if earlier is None else drawn(D_IN, earlier, seed=5)
    method = AlphaEdit(ridge=0.7, null_space_threshold=0.05)
    P = projector(MOMENT.matrix, 0.05)
    assert 0 < round(float(P.trace())) < D_IN
    A = method.read(K, K, MOMENT, None if K_p is None else blocks(K_p))
    assert closeness(A, dense_alphaedit(K, P, 0.7, K_p)) < 1e-9
    R = drawn(D_OUT, count, seed=8)
    memory = torch.zeros_like(P) if K_p is None else K_p @ K_p.T
    assert closeness((R @ A).float(), alphaedit(K, R, P, memory, 0.7)) < 1e-6


def test_alphaedit_answers_earlier_keys_as_the_dense_form_does() -> None:
    K, K_p = drawn(D_IN, 4), drawn(D_IN, 6, seed=5)
    method = AlphaEdit(ridge=0.7, null_space_threshold=0.05)
    P = projector(MOMENT.matrix, 0.05)
    ours = method.read(K, K, MOMENT, blocks(K_p)) @ K_p
    assert closeness(ours, dense_alphaedit(K, P, 0.7, K_p) @ K_p) < 1e-9
    forgetful = method.read(K, K, MOMENT, None) @ K_p
    assert ours.norm() < 0.8 * forgetful.norm()


@pytest.mark.parametrize("count", COUNTS)
def test_alphaedit_says_nothing_where_the_model_already_listens(count: int) -> None:
    K = drawn(D_IN, count)
    method = AlphaEdit(ridge=0.7, null_space_threshold=0.05)
    P = projector(MOMENT.matrix, 0.05)
    A = method.read(K, K, MOMENT, blocks(drawn(D_IN, 3, seed=5)))
    served = drawn(D_IN, 8, seed=6)
    served = served - P @ served
    assert (A @ served).abs().max() < 1e-12 * A.norm() * served.norm()
    assert (A @ drawn(D_IN, 8, seed=6)).abs().max() > 1e-3 * A.norm()


@pytest.mark.parametrize("moment", [MOMENT, None], ids=["C", "identity"])
def test_rome_is_its_dense_form(moment: SecondMoment | None) -> None:
    k, bare, lack = drawn(D_IN, 1), drawn(D_IN, 1, seed=5), drawn(D_OUT, 1, seed=8)
    A = Rome(second_moment=moment is not None).read(k, bare, moment, None)
    C = None if moment is None else moment.matrix
    dense = rome(k[:, 0], bare[:, 0], lack[:, 0], C)
    assert closeness((lack @ A).float(), dense) < 1e-6
    assert torch.allclose(A @ bare, torch.ones(1, 1, dtype=torch.float64), atol=1e-9)


def test_rome_refuses_a_key_that_the_bare_prompt_does_not_share() -> None:
    k, bare = torch.eye(D_IN)[:, :1], torch.eye(D_IN)[:, 1:2]
    with pytest.raises(ErrataError, match="orthogonal"):
        Rome(second_moment=False).read(k, bare, None, None)


@pytest.mark.parametrize("features", [6, 14, 40])
@pytest.mark.parametrize("new", [1, 5])
def test_both_forms_of_the_system_are_one_formula(features: int, new: int) -> None:
    F = drawn(D_IN, features)
    system = 0.3 * torch.eye(features, dtype=torch.float64) + F.T @ F
    dense = (F @ torch.linalg.inv(system))[:, features - new :]
    earlier, base = blocks(F[:, :-new]), 0.3 * torch.eye(D_IN, dtype=torch.float64)
    assert closeness(GrowingSystem().fetch(earlier, F[:, -new:], unchanged, 0.3), dense) < 1e-10
    assert closeness(GrowingSystem().direct(earlier, F[:, -new:], unchanged, base), dense) < 1e-10


def test_keys_that_cannot_be_told_apart_are_refused_in_words() -> None:
    nothing = torch.full((D_IN, 1), float("nan"), dtype=torch.float64)
    with pytest.raises(ErrataError, match="cannot be told apart"):
        GrowingSystem().fetch([], nothing, unchanged, 0.3)
    with pytest.raises(ErrataError, match="cannot be told apart"):
        GrowingSystem().direct([], nothing, unchanged, torch.eye(D_IN, dtype=torch.float64))


class Counted:
    """Features that tell how many keys they were asked for."""

    def __init__(self) -> None:
        self.columns = 0

    def __call__(self, keys: Tensor) -> Tensor:
        self.columns += keys.shape[1]
        return keys


@pytest.mark.parametrize("form", ["fetch", "direct"])
def test_batch_upon_batch_costs_each_its_own_keys_and_gives_the_same_bits(form: str) -> None:
    batches = [drawn(D_IN, 3, seed=seed) for seed in range(6)]
    base: Tensor | float = torch.eye(D_IN, dtype=torch.float64) if form == "direct" else 1.0
    grown = GrowingSystem()
    for count, batch in enumerate(batches):
        counted = Counted()
        going_on = getattr(grown, form)(batches[:count], batch, counted, base)
        assert counted.columns <= 6  # its own, and those of the batch before, once
        anew = getattr(GrowingSystem(), form)(batches[:count], batch, unchanged, base)
        assert torch.equal(going_on, anew)
    assert (grown.gram is None) == (form == "fetch")
    other = getattr(grown, form)(batches[3:4], batches[0], unchanged, base)
    assert torch.equal(
        other, getattr(GrowingSystem(), form)(batches[3:4], batches[0], unchanged, base)
    )


@pytest.mark.parametrize("method", [AlphaEdit(), Memit(history=True)], ids=["alphaedit", "memit"])
def test_a_moment_is_taken_apart_once(
    method: AlphaEdit | Memit, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment, calls = SecondMoment(MOMENT.matrix, 1000), []
    for name in ("eigh", "cholesky_ex"):
        real = getattr(torch.linalg, name)

        def counted(matrix: Tensor, *given: object, real: object = real) -> object:
            calls.append(matrix.shape)
            return real(matrix, *given)  # type: ignore[operator]

        monkeypatch.setattr(torch.linalg, name, counted)
    batches = [drawn(D_IN, 1, seed=seed) for seed in range(5)]
    for count, batch in enumerate(batches):
        method.read(batch, batch, moment, batches[:count])
        method.notes(moment, batch)
    assert calls.count((D_IN, D_IN)) == 1
    assert calls.count((1, 1)) == 2 * len(batches) - 1


INDEFINITE = moment_of(torch.cat([torch.tensor([-1e-9]), torch.logspace(-3, 1, D_IN - 1)]))


def test_a_moment_that_rounding_left_indefinite_falls_back_to_the_dense_solve() -> None:
    K = drawn(D_IN, 4)
    assert INDEFINITE.factor is None
    A = Memit(moment_weight=2.0).read(K, K, INDEFINITE, None)
    assert closeness(A, dense_memit(K, INDEFINITE.matrix, 2.0)) < 1e-6
    assert "solved by LU" in Memit().notes(INDEFINITE, K)[0]
    assert not any("solved by LU" in note for note in Memit().notes(MOMENT, K))
    assert closeness(INDEFINITE.solve(K), torch.linalg.inv(INDEFINITE.matrix) @ K) < 1e-3


def test_the_fallback_weighs_history_too() -> None:
    K, K_p = drawn(D_IN, 4), drawn(D_IN, 3, seed=5)
    A = Memit(moment_weight=2.0, history=True).read(K, K, INDEFINITE, blocks(K_p))
    assert closeness(A, dense_memit(K, INDEFINITE.matrix, 2.0, K_p)) < 1e-6


def test_a_moment_of_too_few_tokens_still_is_the_dense_form_where_that_exists() -> None:
    few, K = drawn(D_IN, 6, seed=9), drawn(D_IN, 2 * D_IN)
    moment = SecondMoment(few @ few.T / 6, 6)
    A = Memit(moment_weight=2.0).read(K, K, moment, None)
    assert closeness(A, dense_memit(K, moment.matrix, 2.0)) < 1e-6


@pytest.mark.parametrize("method", [Memit(), Rome()], ids=["memit", "rome"])
def test_a_singular_moment_is_refused_in_words(method: Memit | Rome) -> None:
    spectrum, K = torch.ones(D_IN, dtype=torch.float64), drawn(D_IN, 1)
    spectrum[:4] = K[:4] = 0
    with pytest.raises(ErrataError, match="singular"):
        method.read(K, K, SecondMoment(spectrum.diag(), 1000), None)


@over_families
@over_methods
def test_an_edit_is_what_plain_sums_say(model_type: str, method_name: str) -> None:
    """The driver around the solve: residuals, blocks from below, ROME's one after the other."""
    edited, method, moments = edited_model(model_type), quick(method_name), moments_of(model_type)
    rewrites = rewrites_of(edited, mean_by_type=method.place == "block")
    wanted = drawn(len(FACTS), width(edited.model)).float()
    targets = Targets(torch.zeros_like(wanted), wanted, tuple(torch.zeros(1, 4) for _ in FACTS))
    updates = method.updates(edited.model, rewrites, targets, moments)
    if isinstance(method, Rome):
        C = moments[2].matrix
        plain = {2: edit_ranks(edited.model, rewrites, wanted, 2, C)}
    elif isinstance(method, Memit):
        plain = edit_blocks(
            edited.model,
            rewrites,
            wanted,
            method.edited_blocks,
            lambda K, R, block: memit(K, R, moments[block].matrix, method.moment_weight),
        )
    else:
        assert isinstance(method, AlphaEdit), f"write down the plain form of {method_name} here"
        cuts = {b: 0.2 * float(torch.linalg.eigvalsh(moments[b].matrix)[-1]) for b in moments}
        plain = edit_blocks(
            edited.model,
            rewrites,
            wanted,
            method.edited_blocks,
            lambda K, R, block: alphaedit(
                K, R, projector(moments[block].matrix, cuts[block]), torch.zeros(1), method.ridge
            ),
        )
    assert len(updates) == len(plain)
    for (name, update), dense in zip(updates.items(), plain.values(), strict=True):
        assert closeness(update.delta(), dense) < 1e-4, name


@over_families
def test_a_second_batch_reads_the_keys_of_the_first_from_its_patch(model_type: str) -> None:
    edited, moments = edited_model(model_type), moments_of(model_type)
    method = quick("alphaedit")
    assert isinstance(method, AlphaEdit)
    first = apply_edit(edited, FACTS[:2], method, moments=moments)
    second = compute_edit(edited, FACTS[2:], method, moments=moments)
    assert second.provenance.parents == (first.digest,)
    for block, (name, update) in zip((1, 2), second.updates.items(), strict=True):
        space = method.null_space(moments[block])
        P = space.project(torch.eye(len(moments[block].matrix)))
        dense = dense_alphaedit(update.K.double(), P, method.ridge, first.updates[name].K.double())
        assert closeness(update.A, dense) < 1e-5
