"""What is found in a first pass over a tensor: histograms of magnitudes, norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeops.kernels.bits import MAGNITUDE, SIGN, WIDTH, inlined, kernel, load_all
from mergeops.kernels.importance import multiply_rows
from mergeops.kernels.products import tree_sum
from mergeops.kernels.sparse import sparsify
from mergeops.kernels.types import (
    Array,
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


@inlined
def _load_magnitudes(
    low: Array,
    high: Array,
    row: int,
    start: int,
    length: int,
    factors: Array,
    rows: Array,
    w: int,
) -> Any:
    """As ``load_all`` with a base; the task vectors times the factors of the tensor's rows, where
    there are any."""
    bad = load_all(low, high, row, start, True, rows, w)
    if factors.size:
        for i in range(1, rows.shape[0]):
            multiply_rows(rows.view(np.float32)[i, :w], start, length, factors)
    return bad


@inlined
def low_digits(bits: Array, least: np.uint32, inside: Array) -> int:
    """Write the low digits of the magnitudes with the high digit of ``least``; returns how many."""
    # Less the prefix, only magnitudes that have it are below 2**DIGIT; what wraps round is beyond.
    # So the index of the next hit moves without a branch.
    number = 0
    for j in range(bits.size):
        digit = np.uint32((bits[j] & MAGNITUDE) - least)
        inside[number] = digit
        number += int(digit < np.uint32(1 << DIGIT))
    return number


@kernel
def count_high_digits(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    targets: Ints,
    length: Index,
    factors: Singles,
    rows: BitRows,
    counts: IntRows,
) -> bool:
    """Add to the histograms of the task vectors' magnitudes, by their high digits.

    Args:
        low, high, row, m: the inputs' bits, the base first; either of the first two is empty.
        targets: ``[k]`` int64, which source.
        length: entries of a row.
        factors: float32, of the chunk's rows, not negative: the magnitudes are multiplied by them;
            or empty.
        rows: scratch ``[parts, WIDTH]`` uint32.
        counts: ``[k, bins]`` int64.

    Returns:
        Whether all inputs are finite.
    """
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_magnitudes(low, high, row, start, length, factors, rows, w)
        for k in range(targets.size):
            bits, bins = rows[targets[k] + 1, :w], counts[k]
            for j in range(w):
                bins[(bits[j] & MAGNITUDE) >> np.uint32(DIGIT)] += 1
    return bool(bad < SIGN)


@kernel
def find_low_digits(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    targets: Ints,
    length: Index,
    factors: Singles,
    prefixes: Ints,
    rows: BitRows,
    inside: Bits32,
    found: BitRows,
    hits: Ints,
) -> bool:
    """The low digits of the magnitudes that have a high digit.

    Args:
        low, high, row, m, targets, length, factors, rows: as in ``count_high_digits``.
        prefixes: ``[k]`` int64, the high digits.
        inside: scratch ``[WIDTH]`` uint32.
        found: ``[k, m]`` uint32, for the low digits.
        hits: ``[k]`` int64, for how many there are.

    Returns:
        Whether all inputs are finite.
    """
    bad = np.uint32(0)
    for k in range(targets.size):
        hits[k] = 0
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_magnitudes(low, high, row, start, length, factors, rows, w)
        for k in range(targets.size):
            bits, target, before = rows[targets[k] + 1, :w], found[k], hits[k]
            number = low_digits(bits, np.uint32(prefixes[k] << DIGIT), inside)
            for j in range(number):
                target[before + j] = inside[j]
            hits[k] = before + number
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
