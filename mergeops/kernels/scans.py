"""What is found in a first pass over a tensor: histograms of magnitudes, products, norms, ranks."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import (
    CHUNK,
    FLAG,
    INDEX,
    INT_ROWS,
    INTS,
    MAGNITUDE,
    SIGN,
    SUMS,
    VERSION,
    WIDTH,
    Array,
    inlined,
    kernel,
    load_all,
)
from mergeops.kernels.combine import SPARSE
from mergeops.kernels.sparse import sparsify
from mergeops.methods import BLOCK

DIGIT = 16
"""Bits of a digit of a magnitude: the high and the low half."""


@kernel(*CHUNK, INTS, INTS, INT_ROWS)
def count_digits(
    low: Array,
    high: Array,
    row: int,
    m: int,
    targets: Array,
    prefixes: Array,
    counts: Array,
    version: int = VERSION,
) -> bool:
    """Add to the histograms of the task vectors' magnitudes.

    Args:
        low, high, row, m: the inputs' bits, the base first; either of the first two is empty.
        targets: ``[k]`` int64, which source.
        prefixes: ``[k]`` int64, only magnitudes with this high digit count, by their low digit; -1
            counts all, by their high digit.
        counts: ``[k, bins]`` int64.

    Returns:
        Whether all inputs are finite.
    """
    parts = targets.max() + 2
    rows = np.empty((parts, WIDTH), np.uint32)
    inside = np.empty(WIDTH, np.uint32)
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad = np.uint32(bad | load_all(low, high, row, start, True, rows, w))
        for k in range(targets.size):
            bits, bins = rows[targets[k] + 1, :w], counts[k]
            found = 0
            if prefixes[k] < 0:
                for j in range(w):
                    bins[(bits[j] & MAGNITUDE) >> np.uint32(DIGIT)] += 1
            else:
                least = np.uint32(prefixes[k] << DIGIT)
                for j in range(w):
                    digit = np.uint32((bits[j] & MAGNITUDE) - least)
                    inside[found] = digit
                    found += int(digit < np.uint32(1 << DIGIT))
                for j in range(found):
                    bins[inside[j]] += 1
    return bool(bad < SIGN)


@kernel(*CHUNK, INTS, INTS, INTS)
def count_equal(
    low: Array,
    high: Array,
    row: int,
    m: int,
    targets: Array,
    wanted: Array,
    counts: Array,
    version: int = VERSION,
) -> bool:
    """How many of a source's magnitudes are exactly ``wanted``, for each of k targets ``[k]``."""
    parts = targets.max() + 2
    rows = np.empty((parts, WIDTH), np.uint32)
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad = np.uint32(bad | load_all(low, high, row, start, True, rows, w))
        for k in range(targets.size):
            bits, key = rows[targets[k] + 1, :w], np.uint32(wanted[k])
            found = np.int32(0)
            for j in range(w):
                found += np.int32(np.uint32(bits[j] & MAGNITUDE) == key)
            counts[k] += found
    return bool(bad < SIGN)


@inlined
def _tree_sum(values: Array) -> float:
    """As ``reduction.row_sums`` of one row; ``values`` is overwritten."""
    width = values.size
    while width > 1:
        half = (width + 1) // 2
        for j in range(width - half):
            values[j] += values[half + j]
        width = half
    return float(values[0])


@kernel(*CHUNK, INDEX, FLAG, SUMS)
def products(
    low: Array,
    high: Array,
    row: int,
    m: int,
    parts: int,
    has_base: bool,
    sums: Array,
    version: int = VERSION,
) -> bool:
    """Block sums ``[pairs, blocks]`` of the products of all pairs: see ``reduction.gram``."""
    first = 1 if has_base else 0
    rows = np.zeros((parts, BLOCK), np.uint32)
    values = rows.view(np.float32)
    half, quarter = BLOCK // 2, BLOCK // 4
    terms = np.empty(quarter, np.float64)
    bad = np.uint32(0)
    for block in range(sums.shape[1]):
        start = block * BLOCK
        w = min(BLOCK, m - start)
        if w < BLOCK:
            rows[:, :] = np.uint32(0)
        bad = np.uint32(bad | load_all(low, high, row, start, has_base, rows, w))
        pair = 0
        for i in range(first, parts):
            for k in range(i, parts):
                a, b = values[i], values[k]
                for j in range(quarter):
                    terms[j] = (
                        np.float64(a[j]) * np.float64(b[j])
                        + np.float64(a[j + half]) * np.float64(b[j + half])
                    ) + (
                        np.float64(a[j + quarter]) * np.float64(b[j + quarter])
                        + np.float64(a[j + half + quarter]) * np.float64(b[j + half + quarter])
                    )
                sums[pair, block] = _tree_sum(terms)
                pair += 1
    return bool(bad < SIGN)


@kernel(*CHUNK, *SPARSE, INDEX, SUMS)
def norms(
    low: Array,
    high: Array,
    row: int,
    m: int,
    offset: int,
    windows: Array,
    limits: Array,
    keys: Array,
    chances: Array,
    rescale: bool,
    length: int,
    sums: Array,
    version: int = VERSION,
) -> bool:
    """Sums ``[2n, pieces]`` of the magnitudes in pieces of ``length`` of n task vectors, as they
    are and as ``combine`` makes them sparse; other arguments as there."""
    n = limits.size
    rows = np.zeros((n + 1, length), np.uint32)
    values = rows.view(np.float32)
    terms = np.empty(length, np.float64)
    random = np.empty(WIDTH // 2 + 1, np.uint64)
    bad = np.uint32(0)
    for piece in range(sums.shape[1]):
        start = piece * length
        w = min(length, m - start)
        if w < length:
            rows[:, :] = np.uint32(0)
        bad = np.uint32(bad | load_all(low, high, row, start, True, rows, w))
        for i in range(n):
            vector = values[i + 1]
            for j in range(length):
                terms[j] = abs(np.float64(vector[j]))
            sums[i, piece] = _tree_sum(terms)
            for at in range(0, w, WIDTH):
                end = min(at + WIDTH, w)
                bits, part = rows[i + 1, at:end], values[i + 1, at:end]
                begin = start + at
                sparsify(
                    bits, part, i, begin, offset, windows, limits, keys, chances, rescale, random
                )
            for j in range(length):
                terms[j] = abs(np.float64(vector[j]))
            sums[n + i, piece] = _tree_sum(terms)
    return bool(bad < SIGN)
