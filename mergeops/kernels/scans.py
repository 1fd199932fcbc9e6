"""What is found in a first pass over a tensor: histograms of magnitudes, norms."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import MAGNITUDE, SIGN, WIDTH, kernel, load_all
from mergeops.kernels.importance import multiply_rows
from mergeops.kernels.products import tree_sum
from mergeops.kernels.sparse import sparsify
from mergeops.kernels.types import (
    BitRows,
    Bits16,
    Bits32,
    ByteRows,
    Index,
    IntRows,
    Ints,
    Keys,
    RealRows,
    Reals,
    ShortRows,
    Singles,
)

DIGIT = 16
"""Bits of a digit of a magnitude: the high and the low half."""


@kernel
def count_digits(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    targets: Ints,
    prefixes: Ints,
    length: Index,
    factors: Singles,
    rows: BitRows,
    inside: Bits32,
    counts: IntRows,
) -> bool:
    """Add to the histograms of the task vectors' magnitudes.

    Args:
        low, high, row, m: the inputs' bits, the base first; either of the first two is empty.
        targets: ``[k]`` int64, which source.
        prefixes: ``[k]`` int64, only magnitudes with this high digit count, by their low digit; -1
            counts all, by their high digit.
        length: entries of a row.
        factors: float32, of the chunk's rows, not negative: the magnitudes are multiplied by them;
            or empty.
        rows, inside: scratch, ``[parts, WIDTH]`` and ``[WIDTH]`` uint32.
        counts: ``[k, bins]`` int64.

    Returns:
        Whether all inputs are finite.
    """
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad = np.uint32(bad | load_all(low, high, row, start, True, rows, w))
        if factors.size:
            for i in range(1, rows.shape[0]):
                multiply_rows(rows.view(np.float32)[i, :w], start, length, factors)
        for k in range(targets.size):
            bits, bins = rows[targets[k] + 1, :w], counts[k]
            hits = 0
            if prefixes[k] < 0:
                for j in range(w):
                    bins[(bits[j] & MAGNITUDE) >> np.uint32(DIGIT)] += 1
            else:
                # Less the prefix, only magnitudes that have it are below 2**DIGIT; what wraps
                # round is beyond. So the index of the next hit moves without a branch.
                least = np.uint32(prefixes[k] << DIGIT)
                for j in range(w):
                    digit = np.uint32((bits[j] & MAGNITUDE) - least)
                    inside[hits] = digit
                    hits += int(digit < np.uint32(1 << DIGIT))
                for j in range(hits):
                    bins[inside[j]] += 1
    return bool(bad < SIGN)


@kernel
def norms(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    offset: Index,
    windows: IntRows,
    limits: Ints,
    keys: Keys,
    chances: ShortRows,
    stays: ByteRows,
    random: Keys,
    length: Index,
    sums: RealRows,
    rows: BitRows,
    terms: Reals,
) -> bool:
    """Sums ``[2n, pieces]`` of the magnitudes in pieces of ``length`` of n task vectors, as they
    are and as ``combine`` makes them sparse; other arguments as there.
    ``rows`` and ``terms`` are scratch ``[n + 1, length]`` uint32 and ``[length]`` float64."""
    n = limits.size
    values = rows.view(np.float32)
    bad = np.uint32(0)
    for piece in range(sums.shape[1]):
        start = piece * length
        w = min(length, m - start)
        if w < length:
            rows[:, :] = np.uint32(0)
        bad = np.uint32(bad | load_all(low, high, row, start, True, rows, w))
        for i in range(n):
            vector = values[i + 1]
            # The L1 norm before.
            for j in range(length):
                terms[j] = abs(np.float64(vector[j]))
            sums[i, piece] = tree_sum(terms)
            for at in range(0, w, WIDTH):
                end = min(at + WIDTH, w)
                bits, part = rows[i + 1, at:end], values[i + 1, at:end]
                begin = start + at
                sparsify(
                    bits, part, i, begin, offset, windows, limits, keys, chances, stays, random
                )
            # The L1 norm after.
            for j in range(length):
                terms[j] = abs(np.float64(vector[j]))
            sums[n + i, piece] = tree_sum(terms)
    return bool(bad < SIGN)
