"""Weights with a LoRA adapter on them, made while they are read."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import NO_SHIFT, SHIFT, kernel, value
from mergeops.kernels.blocks import TILE
from mergeops.kernels.types import Bits16, Bits32, Index, Real, RealRows, Reals, Singles

_TOGETHER = 4
"""Products that are added before the sum goes back to memory."""


@kernel
def add_product(
    low: Bits16,
    high: Bits32,
    begin: Index,
    columns: Index,
    a: RealRows,
    b: RealRows,
    scale: Real,
    sums: Reals,
    out: Singles,
) -> None:
    """Entries of a matrix plus those of scale * B A, summed in float64.

    Args:
        low, high: ``[n]``, the entries' bits; either is empty.
        begin: index in the flattened matrix of the first of them.
        columns: of the matrix.
        a: ``[rank, columns]`` float64.
        b: ``[rows, rank]`` float64, from the row of the first entry on.
        scale: of the product.
        sums: scratch ``[TILE]`` float64.
        out: ``[n]`` float32.
    """
    at, first_row, rank = 0, begin // columns, a.shape[0]
    while at < out.size:
        row, column = (begin + at) // columns, (begin + at) % columns
        w = min(TILE, min(columns - column, out.size - at))
        factors, total = b[row - first_row], sums[:w]
        for j in range(w):
            total[j] = 0.0
        k = 0
        while k + _TOGETHER <= rank:
            f, g, h, i = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
            of_f, of_g = a[k, column : column + w], a[k + 1, column : column + w]
            of_h, of_i = a[k + 2, column : column + w], a[k + 3, column : column + w]
            for j in range(w):
                total[j] += (f * of_f[j] + g * of_g[j]) + (h * of_h[j] + i * of_i[j])
            k += _TOGETHER
        while k < rank:
            f, of_f = factors[k], a[k, column : column + w]
            for j in range(w):
                total[j] += f * of_f[j]
            k += 1
        target = out[at : at + w]
        if low.size:
            stored = low[at : at + w]
            for j in range(w):
                target[j] = np.float64(value(stored, j, SHIFT)) + total[j] * scale
        else:
            plain = high[at : at + w]
            for j in range(w):
                target[j] = np.float64(value(plain, j, NO_SHIFT)) + total[j] * scale
        at += w
