"""Chances that grow with an entry's rank in its row: what DELLA drops by.

A draw mostly says by itself whether its entry stays, whatever the rank, or with a rough one: a
histogram of a row's magnitudes bounds each entry's rank. Only where the draw lies within the bounds
are equal and smaller magnitudes counted. Where each entry's chance is wanted, rows are sorted: see
``sorted_ranks``.
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
    Key,
    Keys,
    Real,
    ShortRows,
)

_MOST = float((1 << 31) - 1)
"""Largest chance in steps."""
_HALF = np.uint64(32)
"""Bits to the upper half of two numbers that are kept in one."""
_COUNTS_PER_ROW = 64
"""As many counts through a row as take the time of sorting it."""


@inlined
def load_keys(
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
    return bool(load_keys(low, high, row, 0, source, rows, out) < SIGN)


@inlined
def chance_of(twice_rank: int, start: float, step: float) -> Any:
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
            bad |= load_keys(low, high, row, begin, source, rows, loaded)
        # Magnitudes of the row.
        mine = keys[in_group : in_group + length]
        _find_buckets(mine, shift, places, table)
        # Bounds of the chances in each bucket: as if the entry were its smallest or its largest.
        for b in range(counts.size - 1):
            least = np.uint64(chance_of(2 * counts[b], start, step))
            most = np.uint64(chance_of(2 * (counts[b + 1] - 1), start, step))
            bounds[b] = least << _HALF | (most + np.uint64(1))
        # Zeros are all equal, so their chance is known: that of their mean rank.
        of_zeros = np.uint64(chance_of(counts[1] - 1, start, step))
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
                        known[b], chance[b] = np.int32(magnitude), chance_of(twice, start, step)
                    target[j] = np.uint8(np.int32(draws[j] & MAGNITUDE) < chance[b])
    return FINE if bad < SIGN else NOT_FINITE
