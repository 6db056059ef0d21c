"""The second moment C = E[k kᵀ] of a weight's inputs over a corpus, and its null space.

C is the uncentred covariance of the keys: editors use it to leave the outputs for typical inputs,
and so existing knowledge, unchanged. `measure` computes it for all blocks in one pass; it is stored
as one safetensors file per weight, under the identity of how it was measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from errata.core.errors import ErrataError
from errata.core.files import write_safetensors
from errata.statistics.convergence import Convergence
from errata.statistics.moment_file import (
    MATRIX,
    UNREADABLE,
    SecondMomentIdentity,
    differences,
    header_of,
    matrix_of,
    no_moment,
)
from errata.statistics.null_space import NullSpace
from errata.statistics.packed import pack

T = TypeVar("T")

TOKENS_PER_DIMENSION = 2
"""With fewer tokens per dimension, directions look unused only because none of them was sampled."""
ROUNDING = 8
"""Eigenvalues below this multiple of float32 rounding count as zero."""


@dataclass(frozen=True)
class SecondMoment:
    """C = E[k kᵀ] of one weight: (d_in, d_in), with the identity of how it was measured."""

    matrix: Tensor
    """(d_in, d_in), float32, symmetric, uncentred."""
    count: int
    """Number of tokens in the mean."""
    identity: SecondMomentIdentity | None = None
    """How it was measured; None if unknown."""
    convergence: Convergence | None = None
    """Its convergence; None where that was not measured."""
    distinct: int | None = None
    """Number of tokens if texts that repeat, and so have the same keys, count once; None if
    unknown."""

    def fewer_than(self, least: int) -> str | None:
        """Return the number of tokens in words if too few have keys of their own, else None."""
        if self.count < least:
            return f"{self.count} tokens"
        if self.distinct is not None and self.distinct < least:
            return f"{self.count} tokens ({self.distinct} without repeated text)"
        return None

    def to(self, device: torch.device) -> SecondMoment:
        """Return the same moment on another device."""
        return replace(self, matrix=self.matrix.to(device))

    @cached_property
    def factor(self) -> Tensor | None:
        """Lower Cholesky factor L of C in float64; None when C is not positive definite."""
        factor, failed = torch.linalg.cholesky_ex(self.matrix.double())
        return None if failed else factor

    def solve(self, columns: Tensor) -> Tensor:
        """Return C⁻¹ applied to columns (d_in, n), float64; `ErrataError` if C is singular."""
        columns = columns.to(self.matrix.device, torch.float64)
        if self.factor is not None:
            half = torch.linalg.solve_triangular(self.factor, columns, upper=False)
            return torch.linalg.solve_triangular(self.factor.T, half, upper=True)
        solved, failed = torch.linalg.solve_ex(self.matrix.double(), columns)
        if failed or not solved.isfinite().all():
            raise self.singular()
        return solved

    @cached_property
    def rank(self) -> int:
        """Numerical rank of C: the dimension of the span of the keys, at most d_in.

        It counts the eigenvalues of S = D^-1/2 C D^-1/2 (C scaled to a unit diagonal) above the
        rounding of float32 sums. Where inverse iteration finds the smallest eigenvalue well
        above that, C has full rank and no other eigenvalue is computed.
        """
        matrix = self.matrix.double()
        diagonal = matrix.diagonal().clamp(min=0)
        scale = torch.where(diagonal > 0, diagonal.rsqrt(), torch.zeros_like(diagonal))
        scaled = scale[:, None] * matrix * scale
        spread = max(1.0, float(scaled.norm()) / len(scaled) ** 0.5)
        floor = ROUNDING * torch.finfo(torch.float32).eps * spread
        if self.factor is not None:
            lower = scale[:, None] * self.factor  # Cholesky factor of S
            column = torch.linspace(1, 2, len(lower)).to(lower)[:, None]
            for _ in range(4):  # inverse iteration towards the smallest eigenvalue
                column = torch.cholesky_solve(column / column.norm(), lower)
            if 1 / float(column.norm()) > 4 * floor:
                return len(matrix)
        return int((torch.linalg.eigvalsh(scaled) > floor).sum())

    def check_invertible(self) -> None:
        """Raise `ErrataError` unless the keys span every direction, so that C can be inverted."""
        if self.rank < self.matrix.shape[0]:
            raise self.singular()

    def singular(self) -> ErrataError:
        """Return the error of a moment that cannot be inverted."""
        return ErrataError(
            f"the second moment of {self.count} tokens is singular: "
            f"its rank is {self.rank} of {self.matrix.shape[0]}, so it cannot be inverted",
            "measure it on varied text with several times as many tokens as dimensions "
            "(`errata stats`)",
        )

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending (d_in,), and eigenvectors (d_in, d_in) of C, float64."""
        values, vectors = torch.linalg.eigh(self.matrix.double())
        return values, vectors

    def fresh(self) -> SecondMoment:
        """Return the same moment with its factorisations, but nothing else that was derived."""
        copy = replace(self)
        known = vars(self)
        vars(copy).update({n: known[n] for n in ("factor", "rank", "spectrum") if n in known})
        return copy

    @cached_property
    def _derived(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def derived(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Return `make()`, computed once per key and cached with the moment."""
        if key not in self._derived:
            self._derived[key] = make()
        found: T = self._derived[key]
        return found

    def null_space(self, threshold: float, relative: bool = False) -> NullSpace:
        """Return the directions with eigenvalues below `threshold` (of the largest, if `relative`).

        Computed once, in float64: in float32 the dimension can be off by one. Raises `ErrataError`
        when there is no such direction.
        """
        key = ("null space", threshold, relative)
        return self.derived(key, lambda: self._cut(threshold, relative))

    def null_space_of(self, share: float) -> NullSpace:
        """Return `share` of all directions, those with the smallest eigenvalues; computed once."""
        return self.derived(("null space of", share), lambda: self._lowest(share))

    def _lowest(self, share: float) -> NullSpace:
        values, vectors = self._eigen()
        count = min(max(1, round(share * len(values))), len(values) - 1)
        below, above = values[count - 1 : count + 1].clamp(min=0).tolist()
        unused = torch.arange(len(values), device=values.device) < count
        return NullSpace.cut(vectors, unused, (below * above) ** 0.5, below, above)

    def _eigen(self) -> tuple[Tensor, Tensor]:
        # Not cached here: at the width of a large model the eigenvectors take gigabytes.
        return vars(self).get("spectrum") or torch.linalg.eigh(self.matrix.double())

    def _cut(self, threshold: float, relative: bool) -> NullSpace:
        values, vectors = self._eigen()
        cut = threshold * float(values[-1]) if relative else threshold
        unused = values < cut
        if not unused.any():
            raise ErrataError(
                f"no direction of the second moment has an eigenvalue below {cut:.3g} "
                f"(the smallest is {float(values[0]):.3g}), so there is no null space to edit in",
                "raise the null space threshold, or make it relative",
            )
        above = float(values[~unused][0]) if not unused.all() else float("inf")
        return NullSpace.cut(vectors, unused, cut, float(values[unused][-1]), above)

    @cached_property
    def digest(self) -> str:
        """Hash of the matrix."""
        data = self.matrix.detach().cpu().contiguous().numpy().data
        return hashlib.sha256(data).hexdigest()[:16]

    def save(self, path: Path, *, packed: bool = False) -> None:
        """Write as safetensors, whole or not at all; `packed` takes a quarter of the space.

        A packed file holds C rounded (see `statistics.packed`), with the same identity. Raises
        `ErrataError` when C is not positive definite and `packed` is asked for.
        """
        identity = None if self.identity is None else self.identity.model_dump()
        convergence = None if self.convergence is None else self.convergence.model_dump()
        fields = {"count": self.count, "distinct": self.distinct}
        header = json.dumps(
            {**fields, "identity": identity, "convergence": convergence}, sort_keys=True
        )
        if packed and self.factor is None:
            raise self.singular()
        factor = self.factor if packed else None
        tensors = {MATRIX: self.matrix} if factor is None else pack(factor)
        write_safetensors(path, tensors, {"errata": header})

    @classmethod
    def load(cls, path: Path, expected: SecondMomentIdentity | None = None) -> SecondMoment:
        """Load a moment; `ErrataError` if it is damaged or its identity differs from `expected`."""
        try:
            with safe_open(path, framework="pt") as file:
                header, matrix = header_of(file), matrix_of(file)
            square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
            if not square or matrix.dtype != torch.float32 or not matrix.isfinite().all():
                raise ValueError("its matrix is not square, float32 and finite")
        except UNREADABLE as error:
            raise no_moment(path, error) from None
        if expected is not None and not expected.matches(header.identity):
            raise ErrataError(
                f"the second moment in {path} was measured on something else: "
                f"{differences(header.identity, expected)}",
                "measure it again with `errata stats`",
            )
        return cls(matrix, *header)
