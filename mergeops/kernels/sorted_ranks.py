"""Each entry's own chance, which grows with its rank in its row: found by sorting the row.

numpy sorts between two kernels: magnitudes with their columns, in 32 bits where these tell a row's
magnitudes apart, else in 64.
"""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import MAGNITUDE, SIGN, WIDTH, inlined, kernel
from mergeops.kernels.rank_bounds import chance_of, load_keys
from mergeops.kernels.sparse import draw
from mergeops.kernels.types import (
    Array,
    BitRows,
    Bits16,
    Bits32,
    Bytes,
    Index,
    Ints,
    Key,
    Keys,
    Real,
    Shorts,
)

_LOW = (1 << 32) - 1
_OCTAVES = 5
"""Bits of a code's distance from the largest magnitude's: 2**27 bit patterns are 16 octaves."""
_STEPS_PER_ENTRY = 8
"""As many in a nearly sorted row as take the time of sorting it."""


@kernel
def pack(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    source: Index,
    length: Index,
    rows: BitRows,
    keys: Bits32,
    out: Ints,
) -> bool:
    """Magnitude and column of each entry of a task vector in one integer, to be sorted.

    Args:
        low, high, row, m, source, length, rows, keys: as in ``decide``.
        out: ``[m]`` int64, magnitude bits above the column's 32 bits.

    Returns:
        Whether the base and the source are finite.
    """
    bad = np.uint32(0)
    for begin in range(0, m, WIDTH):
        loaded, target = keys[: min(WIDTH, m - begin)], out[begin : begin + WIDTH]
        bad |= load_keys(low, high, row, begin, source, rows, loaded)
        for j in range(loaded.size):
            target[j] = np.int64(loaded[j]) << 32
    for begin in range(0, m, length):
        target = out[begin : begin + length]
        for j in range(length):
            target[j] |= j
    return bool(bad < SIGN)


@kernel
def chances(packed: Ints, length: Index, start: Real, step: Real, out: Shorts) -> None:
    """Each entry's chance.

    Args:
        packed: ``[m]`` int64 from ``pack``, each row sorted.
        length, start, step: as in ``decide``.
        out: ``[m]`` int32, in the entries' own places.
    """
    for begin in range(0, packed.size, length):
        ordered, target = packed[begin : begin + length], out[begin : begin + length]
        first = 0
        while first < length:
            # From first to end: a run of equal magnitudes.
            key = ordered[first] >> 32
            end = first + 1
            while end < length and ordered[end] >> 32 == key:
                end += 1
            # Equal magnitudes share the mean of their ranks.
            chance = chance_of(first + end - 1, start, step)
            for j in range(first, end):
                target[ordered[j] & _LOW] = chance
            first = end


@kernel
def pack_short(
    low: Bits16,
    high: Bits32,
    row: Index,
    begin: Index,
    source: Index,
    length: Index,
    bits: Index,
    rows: BitRows,
    keys: Bits32,
    out: Bits32,
) -> bool:
    """As ``pack`` in 32 bits, which are sorted in half the time: a code stands for the magnitude.

    Zeros have the lowest code, the largest magnitude of a row has the highest one. Codes order as
    magnitudes do, but those that are close may share one.

    Args:
        low, high, row, source, length, rows: as in ``decide``.
        begin: index in the chunk of the first entry.
        bits: of a column.
        keys: ``[k]`` uint32, whole rows: for the magnitudes.
        out: ``[k]`` uint32, code above the column's bits.

    Returns:
        Whether the base and the source are finite.
    """
    bad = load_keys(low, high, row, begin, source, rows, keys)
    last = np.uint32((1 << (32 - bits)) - 1)
    unit, up = np.uint32(max(bits - _OCTAVES, 0)), np.uint32(bits)
    for first in range(0, keys.size, length):
        mine, target = keys[first : first + length], out[first : first + length]
        top = np.uint32(0)
        for j in range(length):
            top = max(top, mine[j])
        for j in range(length):
            down = min(np.uint32(top - mine[j]) >> unit, np.uint32(last - np.uint32(1)))
            code = np.uint32(last - down) if mine[j] > 0 else np.uint32(0)
            target[j] = np.uint32(np.uint32(code << up) | np.uint32(j))
    return bool(bad < SIGN)


@inlined
def _put_in_order(magnitudes: Array, packed: Array) -> bool:
    """Sort a row that is nearly sorted by its magnitudes, with what is packed beside them; False
    where it takes too many steps."""
    left = magnitudes.size * _STEPS_PER_ENTRY
    for i in range(1, magnitudes.size):
        magnitude, moved, at = magnitudes[i], packed[i], i
        while at > 0 and magnitudes[at - 1] > magnitude:
            magnitudes[at], packed[at] = magnitudes[at - 1], packed[at - 1]
            at -= 1
            left -= 1
        magnitudes[at], packed[at] = magnitude, moved
        if left < 0:
            return False
    return True


@kernel
def chances_short(
    packed: Bits32,
    keys: Bits32,
    length: Index,
    bits: Index,
    start: Real,
    step: Real,
    magnitudes: Bits32,
    ranks: Shorts,
    out: Shorts,
) -> bool:
    """As ``chances``.

    Args:
        packed: ``[k]`` uint32 from ``pack_short``, each row sorted; put in the magnitudes' order.
        keys, length, bits: as there.
        start, step: as in ``decide``.
        magnitudes, ranks: scratch ``[length]``.
        out: ``[k]`` int32, in the entries' own places.

    Returns:
        False where too many different magnitudes share a code.
    """
    column = np.uint32((1 << bits) - 1)
    for begin in range(0, packed.size, length):
        ordered, mine = packed[begin : begin + length], keys[begin : begin + length]
        target = out[begin : begin + length]
        for j in range(length):
            magnitudes[j] = mine[ordered[j] & column]
        wrong = np.uint32(0)
        for j in range(1, length):
            wrong = np.uint32(wrong + np.uint32(magnitudes[j] < magnitudes[j - 1]))
        if wrong and not _put_in_order(magnitudes, ordered):
            return False
        # Equal magnitudes share the mean of their ranks: of the first and the last one's, twice it
        # is the sum.
        first = np.int32(0)
        ranks[0] = first
        for j in range(1, length):
            first = first if magnitudes[j] == magnitudes[j - 1] else np.int32(j)
            ranks[j] = first
        last = np.int32(length - 1)
        ranks[length - 1] += last
        for j in range(length - 2, -1, -1):
            last = last if magnitudes[j] == magnitudes[j + 1] else np.int32(j)
            ranks[j] += last
        for j in range(length):
            ranks[j] = chance_of(ranks[j], start, step)
        for j in range(length):
            target[ordered[j] & column] = ranks[j]
    return True


@kernel
def compare(chances: Shorts, offset: Index, key: Key, random: Keys, stays: Bytes) -> None:
    """As ``decide``, with chances ``[m]`` from ``chances``."""
    for at in range(0, stays.size, WIDTH):
        w, skip = min(WIDTH, stays.size - at), (offset + at) % 2
        draw(key, (offset + at) // 2, random[: (w + skip + 1) // 2])
        draws = random.view(np.uint32)[skip : skip + w]
        limits, target = chances[at : at + w], stays[at : at + w]
        for j in range(w):
            target[j] = np.uint8(np.int32(draws[j] & MAGNITUDE) < limits[j])
