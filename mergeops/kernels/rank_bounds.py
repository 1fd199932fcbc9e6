"""Chances that grow with an entry's rank in its row: what DELLA drops by.

A draw mostly says by itself whether its entry stays, whatever the rank, or with a rough one: a
histogram of a row's magnitudes bounds each entry's rank. Only where the draw lies within the bounds
are equal and smaller magnitudes counted. Where each entry's chance is wanted, rows are sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeops.kernels.bits import MAGNITUDE, SIGN, WIDTH, inlined, kernel, load_all
from mergeops.kernels.blocks import FINE, NOT_FINITE, TOO_MANY
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
    ShortRows,
    Shorts,
)

_LOW = (1 << 32) - 1
_MOST = float((1 << 31) - 1)
"""Largest chance in steps."""
_HALF = np.uint64(32)
"""Bits to the upper half of two numbers that are kept in one."""
_COUNTS_PER_ROW = 64
"""As many counts through a row as take the time of sorting it."""
_OCTAVES = 5
"""Bits of a code's distance from the largest magnitude's: 2**27 bit patterns are 16 octaves."""
_STEPS_PER_ENTRY = 8
"""As many in a nearly sorted row as take the time of sorting it."""


@inlined
def _load_keys(
    low: Array, high: Array, row: int, start: int, source: int, rows: Array, keys: Array
) -> Any:
    """Magnitude bits of a task vector's entries from ``start`` on; returns as ``load_all``."""
    base, values = rows[0].view(np.float32), rows[1].view(np.float32)
    bad = np.uint32(0)
    for at in range(0, keys.size, WIDTH):
        w = min(WIDTH, keys.size - at)
        begin = start + at
        bad |= load_all(low, high, row, begin, False, rows[:1], w)
        bad |= load_all(low, high, row, begin + (source + 1) * row, False, rows[1:], w)
        for j in range(w):
            values[j] -= base[j]
        bits, target = rows[1, :w], keys[at : at + w]
        for j in range(w):
            target[j] = bits[j] & MAGNITUDE
    return bad


@kernel
def magnitudes(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    source: Index,
    rows: BitRows,
    out: Bits32,
) -> bool:
    """Magnitude bits of a task vector's entries.

    Args:
        low, high, row, m: the inputs' bits, the base first; either of the first two is empty.
        source: which one.
        rows: scratch ``[2, WIDTH]`` uint32.
        out: ``[m]`` uint32.

    Returns:
        Whether the base and the source are finite.
    """
    return bool(_load_keys(low, high, row, 0, source, rows, out) < SIGN)


@inlined
def _chance(twice_rank: int, start: float, step: float) -> Any:
    """What ``ranks.drop_by_rank`` draws against, in steps: MagPrune's probability to stay, which
    grows evenly with the rank."""
    return np.int32(min(max(np.rint(twice_rank * step + start), 0.0), _MOST))


@inlined
def _twice_rank(keys: Array, key: np.uint32, below: int, count: int) -> int:
    """Twice the mean rank of the entries that equal ``key``, which lie in a bucket of ``count``
    with ``below`` entries below it."""
    # How many entries are equal.
    equal = np.uint32(0)
    for j in range(keys.size):
        equal = np.uint32(equal + np.uint32(keys[j] == key))
    # Where others share the bucket, those that are smaller are counted too.
    if equal < count:
        smaller = np.uint32(0)
        for j in range(keys.size):
            smaller = np.uint32(smaller + np.uint32(keys[j] < key))
        below = int(smaller)
    # Ranks below to below + equal - 1: twice their mean is the sum of the first and the last.
    return 2 * below + int(equal) - 1


@inlined
def _find_buckets(keys: Array, shift: int, places: Array, table: Array) -> None:
    """Each entry's bucket, and in ``table[0]`` how many entries lie below each.

    Zeros are bucket 0; the others are even steps in the bits down from the largest magnitude, and
    all that is smaller is in bucket 1.
    """
    counts, odd = table[0], table[1]
    # Bits of the row's largest magnitude.
    top = np.uint32(0)
    for j in range(keys.size):
        top = max(top, keys[j])
    last, unit = np.uint32(counts.size - 2), np.uint32(shift)
    for j in range(keys.size):
        down = min(np.uint32(top - keys[j]) >> unit, np.uint32(last - np.uint32(1)))
        places[j] = last - down if keys[j] > 0 else np.uint32(0)
    # Two histograms: adding to a bin twice in a row waits for the memory.
    counts[:] = 0
    odd[:] = 0
    for j in range(0, keys.size - 1, 2):
        counts[places[j]] += 1
        odd[places[j + 1]] += 1
    if keys.size % 2:
        counts[places[keys.size - 1]] += 1
    # From counts to how many entries lie below.
    below = np.int32(0)
    for b in range(counts.size):
        count = counts[b] + odd[b]
        counts[b] = below
        below = np.int32(below + count)


@kernel
def decide(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    source: Index,
    length: Index,
    offset: Index,
    key: Key,
    start: Real,
    step: Real,
    rows: BitRows,
    keys: Bits32,
    places: Bits32,
    table: ShortRows,
    bounds: Keys,
    taken: Keys,
    random: Keys,
    unsure: Bytes,
    stays: Bytes,
) -> int:
    """Which entries of a task vector stay.

    Args:
        low, high, row, m: the inputs' bits, the base first, whole rows; either of the first two is
            empty.
        source: which one.
        length: entries of a row.
        offset: index of the first entry.
        key: of the draws.
        start: chance of rank 0, in steps.
        step: chance from one half rank to the next.
        rows, keys, places, table, bounds, taken, random, unsure: scratch: ``[2, WIDTH]`` uint32,
            ``[>= max(length, WIDTH)]`` and ``[length]`` uint32, ``[3, buckets + 2]`` int32 with a
            power of two as the number of buckets, ``[buckets + 2]``, ``[WIDTH]`` and
            ``[WIDTH // 2 + 1]`` uint64, ``[WIDTH]`` uint8.
        stays: ``[m]`` uint8, 1 or 0.

    Returns:
        FINE; NOT_FINITE for the base or the source; TOO_MANY draws are within the bounds, which
        happens where most of a row's magnitudes are far below its largest: sort instead.
    """
    # Of each bucket: how many entries lie below it, the magnitude counted last in it, and the
    # chance of that magnitude.
    counts, known, chance = table[0], table[1], table[2]
    # Eight entries of ``unsure`` at a time.
    words = unsure.view(np.uint64)
    # Width of a bucket in bits: the fewer the buckets, the wider.
    buckets, shift = bounds.size - 2, 27
    while buckets > 0:
        buckets, shift = buckets >> 1, shift - 1
    # Short rows are loaded several at a time.
    group = max(WIDTH // length, 1) * length
    # Counts through a row that may be made before sorting is faster.
    left = m // length * _COUNTS_PER_ROW
    bad = np.uint32(0)
    for begin in range(0, m, length):
        in_group = begin % group
        if in_group == 0:
            loaded = keys[: min(group, m - begin)]
            bad |= _load_keys(low, high, row, begin, source, rows, loaded)
        # Magnitudes of the row.
        mine = keys[in_group : in_group + length]
        _find_buckets(mine, shift, places, table)
        # Bounds of the chances in each bucket: as if the entry were its smallest or its largest.
        for b in range(counts.size - 1):
            least = np.uint64(_chance(2 * counts[b], start, step))
            most = np.uint64(_chance(2 * (counts[b + 1] - 1), start, step))
            bounds[b] = least << _HALF | (most + np.uint64(1))
        # Zeros are all equal, so their chance is known: that of their mean rank.
        of_zeros = np.uint64(_chance(counts[1] - 1, start, step))
        bounds[0] = of_zeros << _HALF | of_zeros
        known[:] = np.int32(-1)
        for at in range(0, length, WIDTH):
            w = min(WIDTH, length - at)
            # A random number of 64 bits gives the draws of two entries, from an even one on.
            skip = (offset + begin + at) % 2
            draw(key, (offset + begin + at) // 2, random[: (w + skip + 1) // 2])
            draws = random.view(np.uint32)[skip : skip + w]
            where, target = places[at : at + w], stays[begin + at : begin + at + w]
            for j in range(w):
                taken[j] = bounds[where[j]]
            # An entry surely stays if its draw is below the least chance of its bucket, and surely
            # goes if it is not below the largest one.
            for j in range(w):
                drawn = draws[j] & MAGNITUDE
                surely = np.uint8(drawn < np.uint32(taken[j] >> _HALF))
                target[j] = surely
                unsure[j] = surely ^ np.uint8(drawn < np.uint32(taken[j]))
            # The others need their exact rank.
            for word in range((w + 7) // 8):
                if words[word] == 0:
                    continue
                for j in range(8 * word, min(8 * word + 8, w)):
                    if unsure[j] == 0:
                        continue
                    b, magnitude = where[j], mine[at + j]
                    if known[b] != np.int32(magnitude):
                        left -= 1
                        if left < 0:
                            return TOO_MANY
                        count = counts[b + 1] - counts[b]
                        twice = _twice_rank(mine, magnitude, int(counts[b]), count)
                        known[b], chance[b] = np.int32(magnitude), _chance(twice, start, step)
                    target[j] = np.uint8(np.int32(draws[j] & MAGNITUDE) < chance[b])
    return FINE if bad < SIGN else NOT_FINITE


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
        bad |= _load_keys(low, high, row, begin, source, rows, loaded)
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
            chance = _chance(first + end - 1, start, step)
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
    bad = _load_keys(low, high, row, begin, source, rows, keys)
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
            ranks[j] = _chance(ranks[j], start, step)
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
