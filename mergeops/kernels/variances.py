"""Selection by each entry's variance over the sources."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergeops.kernels.bits import MAGNITUDE, SHIFT, SIGN, WIDTH, inlined, kernel, load_all
from mergeops.kernels.scans import DIGIT, low_digits
from mergeops.kernels.types import Array, BitRows, Bits16, Bits32, Index, Ints, RealRows


@inlined
def _load_variances(
    low: Array, high: Array, row: int, start: int, w: int, rows: Array, sums: Array
) -> Any:
    """The bits of the variance of a block's entries, in float64 and rounded to float32, into the
    last row; the rows before have the inputs. Returns as ``load_all``.

    Differences from the first source make it exactly zero where all sources are equal.
    """
    n = rows.shape[0] - 2
    bad = load_all(low, high, row, start, False, rows[: n + 1], w)
    values, share = rows.view(np.float32), 1.0 / n
    first, variance = values[1, :w], values[n + 1, :w]
    mean, squares = sums[n, :w], sums[n + 1, :w]
    for j in range(w):
        mean[j] = squares[j] = 0.0
    for i in range(n):
        source, difference = values[1 + i, :w], sums[i, :w]
        for j in range(w):
            difference[j] = np.float64(source[j] - first[j])
            mean[j] += difference[j]
    for j in range(w):
        mean[j] *= share
    # Sum of the squared distances from the mean; over n, it is the variance.
    for i in range(n):
        difference = sums[i, :w]
        for j in range(w):
            distance = difference[j] - mean[j]
            squares[j] += distance * distance
    for j in range(w):
        variance[j] = np.float32(squares[j] * share)
    return bad


@kernel
def count_varying(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    rows: BitRows,
    sums: RealRows,
    counts: Ints,
) -> bool:
    """Add to the histogram ``[bins]`` of the variances by their high digits.

    Args:
        low, high, row, m: the inputs' bits, the base first; either of the first two is empty.
        rows: scratch ``[n + 2, WIDTH]`` uint32, for n sources.
        sums: scratch ``[n + 2, WIDTH]`` float64.
        counts: the histogram.

    Returns:
        Whether all inputs are finite.
    """
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_variances(low, high, row, start, w, rows, sums)
        bits = rows[rows.shape[0] - 1, :w]
        for j in range(w):
            counts[(bits[j] & MAGNITUDE) >> np.uint32(DIGIT)] += 1
    return bool(bad < SIGN)


@kernel
def find_varying(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    prefix: Index,
    rows: BitRows,
    sums: RealRows,
    inside: Bits32,
    found: Bits32,
) -> int:
    """The low digits of the variances with a high digit, and how many; -1 where an input is not
    finite. ``inside`` is scratch ``[WIDTH]``, ``found`` has m places; else as ``count_varying``."""
    bad, hits = np.uint32(0), 0
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_variances(low, high, row, start, w, rows, sums)
        number = low_digits(rows[rows.shape[0] - 1, :w], np.uint32(prefix << DIGIT), inside)
        for j in range(number):
            found[hits + j] = inside[j]
        hits += number
    return hits if bad < SIGN else -1


@kernel
def count_differing(
    low: Bits16, high: Bits32, row: Index, m: Index, rows: BitRows, sums: RealRows
) -> int:
    """How many variances are not zero; -1 where an input is not finite. Else as
    ``count_varying``."""
    bad, number = np.uint32(0), 0
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_variances(low, high, row, start, w, rows, sums)
        bits = rows[rows.shape[0] - 1, :w]
        for j in range(w):
            number += int((bits[j] & MAGNITUDE) != np.uint32(0))
    return number if bad < SIGN else -1


@kernel
def variances(
    low: Bits16, high: Bits32, row: Index, m: Index, rows: BitRows, sums: RealRows, found: Bits32
) -> bool:
    """The bits of all variances ``[m]``; else as ``count_varying``."""
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_variances(low, high, row, start, w, rows, sums)
        bits, target = rows[rows.shape[0] - 1, :w], found[start : start + w]
        for j in range(w):
            target[j] = bits[j] & MAGNITUDE
    return bool(bad < SIGN)


@kernel
def keep_varying(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    key: Index,
    last: Index,
    rows: BitRows,
    sums: RealRows,
    kept_low: Bits16,
    kept_high: Bits32,
) -> bool:
    """The inputs with the base's entries in place of those whose variance's bits are below ``key``,
    or equal it beyond index ``last`` of the chunk.

    Args:
        low, high, row, m, rows, sums: as in ``count_varying``.
        key, last: the cut.
        kept_low, kept_high: ``[(n + 1) * m]``, as ``low`` and ``high``; either is empty.

    Returns:
        Whether all inputs are finite.
    """
    parts = rows.shape[0] - 1
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= _load_variances(low, high, row, start, w, rows, sums)
        base, stays = rows[0, :w], rows[parts, :w]
        for j in range(w):
            bits = np.int64(stays[j] & MAGNITUDE)
            stays[j] = np.uint32((bits > key) | ((bits == key) & (start + j <= last)))
        for i in range(parts):
            source, begin = rows[i, :w], i * m + start
            if kept_low.size:
                kept16 = kept_low[begin : begin + w]
                for j in range(w):
                    kept16[j] = (source[j] if stays[j] else base[j]) >> SHIFT
            else:
                kept32 = kept_high[begin : begin + w]
                for j in range(w):
                    kept32[j] = source[j] if stays[j] else base[j]
    return bool(bad < SIGN)
