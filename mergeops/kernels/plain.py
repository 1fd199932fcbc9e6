"""The weighted sum of few sources as they are, in one go from the stored bits to the result.

What one block's loop does is written out for each number of sources, so that no sum on the way goes
to memory.
"""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import NO_SHIFT, SHIFT, inlined, value, written_out
from mergeops.kernels.types import Array

MOST = 4
"""Sources of which a sum is made in one go."""


@written_out
def _sum(
    n: int,
    has_base: bool,
    stored: Array,
    shift: np.uint32,
    row: int,
    start: int,
    weights: Array,
    scale: np.float32,
    total: Array,
) -> None:
    w, first = total.size, start + row if has_base else start
    # Those beyond the last source are not looked at; here they are others of the sources.
    second, third, fourth = first + 1 % n * row, first + 2 % n * row, first + 3 % n * row
    one, two = stored[first : first + w], stored[second : second + w]
    three, four = stored[third : third + w], stored[fourth : fourth + w]
    by_one, by_two, by_three, by_four = weights[0], weights[1 % n], weights[2 % n], weights[3 % n]
    base = stored[start : start + w]
    for j in range(w):
        # The weighted sum of the task vectors (without a base, of the sources).
        origin = value(base, j, shift) if has_base else np.float32(0)
        change = (value(one, j, shift) - origin) * by_one
        if n > 1:
            change += (value(two, j, shift) - origin) * by_two
        if n > 2:
            change += (value(three, j, shift) - origin) * by_three
        if n > 3:
            change += (value(four, j, shift) - origin) * by_four
        total[j] = origin + change * scale if has_base else change


@written_out
def _sum_of(
    n: int,
    has_base: bool,
    stored: Array,
    shift: np.uint32,
    row: int,
    start: int,
    weights: Array,
    scale: np.float32,
    total: Array,
) -> None:
    if n == 1:
        _sum(1, has_base, stored, shift, row, start, weights, scale, total)
    elif n == 2:
        _sum(2, has_base, stored, shift, row, start, weights, scale, total)
    elif n == 3:
        _sum(3, has_base, stored, shift, row, start, weights, scale, total)
    else:
        _sum(MOST, has_base, stored, shift, row, start, weights, scale, total)


@inlined
def add_stored(
    low: Array,
    high: Array,
    row: int,
    start: int,
    has_base: bool,
    weights: Array,
    scale: np.float32,
    total: Array,
) -> None:
    """As ``weighting.weighted_sum`` of a block; where there is a base, of the task vectors, scaled
    and added to it. ``MOST`` sources at most.

    Each result is finite only if all that it is made of is.
    """
    n = weights.size
    if low.size:
        if has_base:
            _sum_of(n, True, low, SHIFT, row, start, weights, scale, total)
        else:
            _sum_of(n, False, low, SHIFT, row, start, weights, scale, total)
    elif has_base:
        _sum_of(n, True, high, NO_SHIFT, row, start, weights, scale, total)
    else:
        _sum_of(n, False, high, NO_SHIFT, row, start, weights, scale, total)
