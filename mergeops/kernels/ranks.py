"""Chances that grow with an entry's rank in its row: what DELLA drops by."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import (
    CHUNK,
    INDEX,
    INTS,
    MAGNITUDE,
    REAL,
    SHORTS,
    SIGN,
    VERSION,
    WIDTH,
    Array,
    kernel,
    load_all,
)

_LOW = (1 << 32) - 1


@kernel(*CHUNK, INDEX, INDEX, INTS)
def pack(
    low: Array,
    high: Array,
    row: int,
    m: int,
    source: int,
    length: int,
    out: Array,
    version: int = VERSION,
) -> bool:
    """Magnitude and column of each entry of a task vector in one integer, to be sorted.

    Args:
        low, high, row, m: the inputs' bits, the base first, whole rows; either of the first two is
            empty.
        source: which one.
        length: entries of a row.
        out: ``[m]`` int64, magnitude bits above the column's 32 bits.

    Returns:
        Whether the base and the source are finite.
    """
    rows = np.empty((2, WIDTH), np.uint32)
    base, values = rows[0].view(np.float32), rows[1].view(np.float32)
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad = np.uint32(bad | load_all(low, high, row, start, False, rows[:1], w))
        bad = np.uint32(
            bad | load_all(low, high, row, start + (source + 1) * row, False, rows[1:], w)
        )
        for j in range(w):
            values[j] -= base[j]
        target, bits = out[start : start + w], rows[1, :w]
        for j in range(w):
            target[j] = np.int64(bits[j] & MAGNITUDE) << 32
    for start in range(0, m, length):
        target = out[start : start + length]
        for j in range(length):
            target[j] |= j
    return bool(bad < SIGN)


@kernel(INTS, INDEX, REAL, REAL, SHORTS)
def chances(
    packed: Array, length: int, start: float, step: float, out: Array, version: int = VERSION
) -> None:
    """What ``ranks.drop_by_rank`` draws against.

    Args:
        packed: ``[m]`` int64 from ``pack``, each row sorted.
        length: entries of a row.
        start: chance of rank 0, in steps.
        step: chance from one half rank to the next.
        out: ``[m]`` int32, in the entries' own places.
    """
    most = float((1 << 31) - 1)
    for begin in range(0, packed.size, length):
        ordered, target = packed[begin : begin + length], out[begin : begin + length]
        first = 0
        while first < length:
            key = ordered[first] >> 32
            end = first + 1
            while end < length and ordered[end] >> 32 == key:
                end += 1
            # Equal magnitudes share the mean of their ranks.
            chance = np.int32(min(max(np.rint((first + end - 1) * step + start), 0.0), most))
            for j in range(first, end):
                target[ordered[j] & _LOW] = chance
            first = end
