"""Every method's read is A = (ρ I + Kᵀ M K)⁻¹ Kᵀ M with the M and ρ that docs/methods.md names."""

from __future__ import annotations

import torch
from torch import Tensor

from errata.methods import AlphaEdit, Memit, Rome
from errata.statistics.second_moment import SecondMoment

WIDTH, LAMBDA, EPSILON = 23, 3.0, 0.7


def drawn(*shape: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


SPREAD = torch.linspace(1e-3, 2.0, WIDTH, dtype=torch.float64)
BASIS = torch.linalg.qr(drawn(WIDTH, WIDTH, seed=1)).Q
C = (BASIS * SPREAD @ BASIS.T).float()
MOMENT = SecondMoment(C, 1000)
K, K_p = drawn(WIDTH, 4, seed=2), drawn(WIDTH, 5, seed=3)
UNIT = torch.eye(WIDTH, dtype=torch.float64)


def formula(M: Tensor, rho: float, keys: Tensor) -> Tensor:
    """(ρ I + Kᵀ M K)⁻¹ Kᵀ M, as dense as it is written."""
    n = keys.shape[1]
    return torch.linalg.inv(rho * torch.eye(n, dtype=keys.dtype) + keys.T @ M @ keys) @ keys.T @ M


def test_rome_is_the_formula_where_the_two_keys_are_one() -> None:
    k = K[:, :1]
    read = Rome().read(k, k, MOMENT, None)
    torch.testing.assert_close(read, formula(torch.linalg.inv(C.double()), 0.0, k))


def test_memit_is_the_formula() -> None:
    read = Memit(moment_weight=LAMBDA).read(K, K, MOMENT, None)
    torch.testing.assert_close(read, formula(torch.linalg.inv(C.double()), LAMBDA, K))


def test_memit_with_history_is_the_formula() -> None:
    read = Memit(moment_weight=LAMBDA, history=True).read(K, K, MOMENT, [K_p])
    M = torch.linalg.inv(C.double() + K_p @ K_p.T / LAMBDA)
    torch.testing.assert_close(read, formula(M, LAMBDA, K))


def test_alphaedit_is_the_formula() -> None:
    method = AlphaEdit(ridge=EPSILON, null_space_threshold=1.0)
    read = method.read(K, K, MOMENT, [K_p])
    values, vectors = torch.linalg.eigh(C.double())
    free = vectors[:, values < 1.0]
    assert 0 < free.shape[1] < WIDTH
    P, S = free @ free.T, K_p @ K_p.T
    M = torch.linalg.solve(P @ S + EPSILON * UNIT, P)
    torch.testing.assert_close(read, formula(M, 1.0, K))
    published = torch.linalg.solve((K @ K.T @ P + S @ P + EPSILON * UNIT).T, (K.T @ P).T).T
    torch.testing.assert_close(read, published)
