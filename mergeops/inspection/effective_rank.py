"""Effective rank of a matrix that is seen a few rows at a time.

Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality": exp of the
entropy of the singular values, divided by their sum. Between 1 and the rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeops.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


EXACT_SIDE = 1024
"""A matrix whose shorter side is at most this is measured exactly."""
SKETCH = 512
"""Of a larger one, this many random combinations of its rows are. Halko et al. 2011,
https://arxiv.org/abs/0909.4061: they keep the leading singular values; ranks above some hundreds
are understated."""
NOISE = 1e-7
"""Smaller singular values, relative to the largest, are what float64 leaves of zero."""


class RankMeter:
    """Takes the rows of one ``[rows, columns]`` matrix in order; memory is bounded by 1024 rows or
    columns."""

    def __init__(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self._seen = 0
        self._is_wide = rows < columns
        self._is_exact = min(rows, columns) <= EXACT_SIDE
        self._kept: list[Tensor] = []
        shape: tuple[int, ...] = (columns if self._is_exact else SKETCH, columns)
        self._sum = torch.zeros(() if self._keeps_rows else shape, dtype=torch.float64)
        self._random = torch.Generator().manual_seed(0)

    @property
    def _keeps_rows(self) -> bool:
        return self._is_exact and self._is_wide

    def add(self, block: Tensor) -> None:
        """The next rows, ``[k, columns]`` float64."""
        self._seen += block.shape[0]
        if self._keeps_rows:
            self._kept.append(block.clone())
        elif self._is_exact:
            # The Gram matrix of the columns adds up over blocks of rows.
            self._sum += block.T @ block
        else:
            # So does the sketch G A, with G of normal random numbers.
            mix = torch.randn((SKETCH, block.shape[0]), generator=self._random, dtype=torch.float64)
            self._sum += mix @ block

    def value(self) -> float | None:
        """The effective rank; None for a matrix of zeros, or with NaN or infinity."""
        if self._keeps_rows:
            rows = torch.cat(self._kept)
            square = rows @ rows.T
        elif self._is_exact:
            square = self._sum
        else:
            square = self._sum @ self._sum.T
        if not bool(torch.isfinite(square).all()):
            return None
        # The singular values of A are the roots of the eigenvalues of A A^T, or of A^T A.
        return effective_rank(torch.linalg.eigvalsh(square).clamp_min(0).sqrt())


def effective_rank(singular_values: Tensor) -> float | None:
    """exp of the entropy of ``[k]`` singular values; None where all are zero."""
    largest = float(singular_values.max())
    if largest == 0:
        return None
    values = singular_values[singular_values > NOISE * largest]
    share = values / values.sum()
    # Shannon's entropy, -sum p ln p.
    entropy = -(share * share.log()).sum()
    return float(torch.exp(entropy))
