"""One kernel for many methods: sparsify, weigh, vote or add up, go from the base, round."""

from __future__ import annotations

import numba
import numpy as np

from mergeops.kernels.bits import (
    BITS16,
    BITS32,
    CHUNK,
    FLAG,
    FLOATS,
    INDEX,
    INT_ROWS,
    INTS,
    KEYS,
    SHORT_ROWS,
    SIGN,
    VERSION,
    WIDTH,
    Array,
    inlined,
    kernel,
    load_all,
    store,
)
from mergeops.kernels.sparse import sparsify


@inlined
def _add_up(values: Array, first: int, weights: Array, total: Array) -> None:
    """As ``weighting.weighted_sum``; the vectors begin with row ``first``."""
    w = total.size
    vector, weight = values[first, :w], weights[0]
    for j in range(w):
        total[j] = vector[j] * weight
    for i in range(1, weights.size):
        vector, weight = values[first + i, :w], weights[i]
        for j in range(total.size):
            total[j] += vector[j] * weight


@inlined
def _vote(
    rows: Array,
    values: Array,
    first: int,
    weights: Array,
    normalize: bool,
    total: Array,
    merged: Array,
    voters: Array,
) -> None:
    """As ``consensus.elect_and_average``; the result is in ``total``."""
    w = total.size
    least = np.float32(np.inf)
    for i in range(weights.size):
        vector, weight = values[first + i, :w], weights[i]
        if weight != 0 and abs(weight) < least:
            least = abs(weight)
        if i == 0:
            for j in range(total.size):
                vector[j] *= weight
                total[j] = vector[j]
        else:
            for j in range(total.size):
                vector[j] *= weight
                total[j] += vector[j]
    if least == np.float32(np.inf):
        least = np.float32(1)
    zero = np.float32(0)
    merged[:] = zero
    voters[:] = zero
    signs = total.view(np.uint32)
    for i in range(weights.size):
        bits, weight = rows[first + i, :w], abs(weights[i])
        vector = values[first + i, :w]
        for j in range(w):
            bits[j] ^= signs[j] & SIGN
        for j in range(w):
            agrees = vector[j] > zero
            merged[j] += vector[j] if agrees else zero
            voters[j] += weight if agrees else zero
    if normalize:
        for j in range(w):
            merged[j] /= voters[j] if voters[j] > least else least
    averages = merged.view(np.uint32)
    for j in range(w):
        signs[j] = averages[j] ^ (signs[j] & SIGN)


SPARSE = (INDEX, INT_ROWS, INTS, KEYS, SHORT_ROWS, FLAG)
"""``offset, windows, limits, keys, chances, rescale``: what the sources keep."""


@kernel(*CHUNK, FLAG, *SPARSE, FLOATS, FLOATS, FLAG, FLAG, numba.float32, BITS16, BITS32)
def combine(
    low: Array,
    high: Array,
    row: int,
    m: int,
    has_base: bool,
    offset: int,
    windows: Array,
    limits: Array,
    keys: Array,
    chances: Array,
    rescale: bool,
    factors: Array,
    weights: Array,
    vote: bool,
    normalize: bool,
    scale: np.float32,
    out_low: Array,
    out_high: Array,
    version: int = VERSION,
) -> bool:
    """Merge a chunk.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        has_base: whether the first row is the base.
        offset: index of the first.
        windows: ``[n, 4]`` int64, key and last of the outer and the inner cut; or empty.
        limits: ``[n]`` int64, draws below it stay; -1 for all.
        keys: ``[n]`` uint64, of the draws.
        chances: ``[n, m]`` int32, each entry's own limit; or empty.
        rescale: whether to divide by the own chance.
        factors: ``[n]`` float32, on what stays.
        weights: ``[n]`` float32.
        vote: elect a sign; else add up.
        normalize: divide by the voters' weight.
        scale: on the sum.
        out_low, out_high: ``[m]``, for the result's bits; either of them is empty.
        version: not to be given.

    Returns:
        Whether all inputs and results are finite.
    """
    n = weights.size
    first = 1 if has_base else 0
    rows = np.empty((n + first, WIDTH), np.uint32)
    values = rows.view(np.float32)
    spare = np.empty((3, WIDTH), np.uint32)
    spare_values = spare.view(np.float32)
    random = np.empty(WIDTH // 2 + 1, np.uint64)
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= load_all(low, high, row, start, has_base, rows, w)
        for i in range(n):
            bits, vector = rows[first + i, :w], values[first + i, :w]
            sparsify(
                bits, vector, i, start, offset, windows, limits, keys, chances, rescale, random
            )
            if factors[i] != 1:
                for j in range(w):
                    vector[j] *= factors[i]
        total = spare_values[0, :w]
        if vote:
            merged, voters = spare_values[1, :w], spare_values[2, :w]
            _vote(rows, values, first, weights, normalize, total, merged, voters)
        else:
            _add_up(values, first, weights, total)
        if has_base:
            base = values[0, :w]
            for j in range(w):
                total[j] = base[j] + total[j] * scale
        bad |= store(spare[0, :w], out_low, out_high, start)
    return bool(bad < SIGN)
