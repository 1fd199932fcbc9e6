"""One kernel for many methods: sparsify, weigh, vote or add up, go from the base, round."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import SIGN, WIDTH, inlined, kernel, load_all, store
from mergeops.kernels.plain import MOST, add_stored
from mergeops.kernels.sparse import sparsify
from mergeops.kernels.types import (
    Array,
    BitRows,
    Bits16,
    Bits32,
    ByteRows,
    Flag,
    Index,
    IntRows,
    Ints,
    Keys,
    ShortRows,
    Single,
    Singles,
)
from mergeops.kernels.vote import elect


@inlined
def _add_up(values: Array, first: int, factors: Array, weights: Array, total: Array) -> None:
    """As ``weighting.weighted_sum``, of ``factors`` times the vectors, which begin with row
    ``first``."""
    for i in range(weights.size):
        vector, factor, weight = values[first + i, : total.size], factors[i], weights[i]
        if i == 0:
            for j in range(total.size):
                total[j] = vector[j] * factor * weight
        else:
            for j in range(total.size):
                total[j] += vector[j] * factor * weight


@kernel
def combine(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    has_base: Flag,
    offset: Index,
    windows: IntRows,
    limits: Ints,
    keys: Keys,
    chances: ShortRows,
    stays: ByteRows,
    random: Keys,
    factors: Singles,
    weights: Singles,
    vote: Flag,
    normalize: Flag,
    scale: Single,
    out_low: Bits16,
    out_high: Bits32,
    rows: BitRows,
    spare: BitRows,
) -> bool:
    """Merge a chunk.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        has_base: whether the first row is the base.
        offset: index of the first.
        windows: ``[n, 4]`` int64, key and last of the outer and the inner cut; or empty.
        limits: ``[n]`` int64, draws below it stay; -1 for all.
        keys: ``[n]`` uint64, of the draws.
        chances: ``[n, m]`` int32, each entry's own limit, by which what stays is divided; or empty.
        stays: ``[n, m]`` uint8, whether each entry stays, in place of draws; or empty.
        random: scratch ``[WIDTH // 2 + 1]`` uint64.
        factors: ``[n]`` float32, on what stays.
        weights: ``[n]`` float32.
        vote: elect a sign; else add up.
        normalize: divide by the voters' weight.
        scale: on the sum.
        out_low, out_high: ``[m]``, for the result's bits; either of them is empty.
        rows, spare: scratch ``[n + has_base, WIDTH]`` and ``[3, WIDTH]`` uint32.

    Returns:
        Whether all inputs and results are finite.
    """
    n = weights.size
    first = 1 if has_base else 0
    values = rows.view(np.float32)
    spare_values = spare.view(np.float32)
    bad = np.uint32(0)
    # Whether every source counts in full, so that its weight is all there is to do.
    plain = not vote and windows.size == 0 and n <= MOST
    for i in range(n):
        plain = plain and limits[i] < 0 and factors[i] == 1
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        total, base = spare_values[0, :w], values[0, :w]
        if plain:
            # Here, and nowhere else, a result is finite only if all inputs are.
            add_stored(low, high, row, start, has_base, weights, scale, total)
        else:
            bad |= load_all(low, high, row, start, has_base, rows, w)
            for i in range(n):
                bits, vector = rows[first + i, :w], values[first + i, :w]
                sparsify(
                    bits, vector, i, start, offset, windows, limits, keys, chances, stays, random
                )
            if vote:
                merged, voters = spare_values[1, :w], spare_values[2, :w]
                elect(rows, values, first, factors, weights, normalize, total, merged, voters)
            else:
                _add_up(values, first, factors, weights, total)
            if has_base:
                # From the base along the merged task vector.
                for j in range(w):
                    total[j] = base[j] + total[j] * scale
        bad |= store(spare[0, :w], out_low, out_high, start)
    return bool(bad < SIGN)
