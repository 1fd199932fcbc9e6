"""Sums whose rounding does not depend on chunks, threads or device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mergeops.kernels import BLOCK
from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import Scan
from mergeops.methods.steps import fused


def block_sums(values: Tensor) -> Tensor:
    """Sum of each block of ``BLOCK`` entries, added pairwise in one fixed tree.

    Args:
        values: ``[m]``; the last block may be short.

    Returns:
        ``[ceil(m / BLOCK)]``.
    """
    blocks = -(-values.numel() // BLOCK)
    if values.numel() < blocks * BLOCK:
        values = torch.nn.functional.pad(values, (0, blocks * BLOCK - values.numel()))
    width = BLOCK
    values = values.view(blocks, width)
    while width > 1:
        width //= 2
        values = values[:, :width] + values[:, width:]
    return values[:, 0]


def total(parts: Iterable[Any]) -> list[float]:
    """Add up block sums, exactly rounded once.

    Args:
        parts: what a scan yields, each ``[k, blocks]``, float64.

    Returns:
        k sums over all blocks of all parts.
    """
    return [math.fsum(row) for row in np.concatenate(list(map(np.asarray, parts)), axis=1).tolist()]


def row_sums(values: Tensor) -> Tensor:
    """Sum of each row, added pairwise in one fixed tree.

    Args:
        values: ``[r, m]``, m at least 1.

    Returns:
        ``[r]``.
    """
    while values.shape[1] > 1:
        width = values.shape[1]
        half = (width + 1) // 2
        left = values[:, :half].clone()
        left[:, : width - half] += values[:, half:]
        values = left
    return values[:, 0]


def gram(scan: Scan) -> list[list[float]]:
    """Dot products of the whole tensors, in float64.

    Returns:
        ``[n][n]``: of the task vectors where there is a base, of the sources themselves elsewhere.
    """

    def look(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        rows = vectors(base, sources).double()
        return torch.stack([block_sums(rows[i] * rows[j]) for i, j in pairs(len(rows))])

    sums = total(scan(look, fused=fused.gram))
    n = (math.isqrt(8 * len(sums) + 1) - 1) // 2
    products = [[0.0] * n for _ in range(n)]
    for (i, j), value in zip(pairs(n), sums, strict=True):
        products[i][j] = products[j][i] = value
    return products


def length_of_sum(factors: Sequence[float], products: Sequence[Sequence[float]]) -> float:
    """Length of the sum of ``factors[i]`` times vector i, from the vectors' dot products."""
    n = len(factors)
    squares = (factors[i] * factors[j] * products[i][j] for i in range(n) for j in range(n))
    return math.sqrt(max(math.fsum(squares), 0.0))


def vectors(base: Tensor | None, sources: Tensor) -> Tensor:
    """Task vectors where there is a base, the sources themselves elsewhere: ``[n, m]``."""
    return sources if base is None else sources - base


def pairs(n: int) -> Sequence[tuple[int, int]]:
    """All ``(i, j)`` with ``i <= j < n``, in one fixed order."""
    return [(i, j) for i in range(n) for j in range(i, n)]
