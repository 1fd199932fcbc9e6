"""Kernels of methods with an arithmetic of their own, entry by entry."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import SIGN, WIDTH, inlined, kernel, load_all, store
from mergeops.kernels.types import (
    Array,
    BitRows,
    Bits16,
    Bits32,
    Index,
    Ints,
    RealRows,
    Reals,
    Single,
    Singles,
)


@kernel
def swap_near(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    t: Single,
    out_low: Bits16,
    out_high: Bits32,
    rows: BitRows,
    spare: BitRows,
) -> bool:
    """As ``nearswap``: from the base by the change, which is clamped to ``t``, above zero.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        t: how far an entry moves at most.
        out_low, out_high: where the result goes; either is empty.
        rows: scratch ``[2, WIDTH]``.
        spare: scratch ``[1, WIDTH]``.

    Returns:
        Whether all inputs and results are finite.
    """
    values, total = rows.view(np.float32), spare.view(np.float32)[0]
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= load_all(low, high, row, start, True, rows, w)
        base, change = values[0, :w], values[1, :w]
        for j in range(w):
            total[j] = base[j] + min(max(change[j], -t), t)
        bad |= store(spare[0, :w], out_low, out_high, start)
    return bool(bad < SIGN)


@inlined
def _count_changed(values: Array, n: int, w: int, epsilon: np.float32, counts: Array) -> None:
    """How many of the task vectors, which begin with row 1, changed each entry."""
    for j in range(w):
        counts[j] = 0
    for i in range(n):
        change = values[1 + i, :w]
        for j in range(w):
            counts[j] += np.float32(1) if abs(change[j]) > epsilon else np.float32(0)


@kernel
def reinforce(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    epsilon: Single,
    factors: Singles,
    out_low: Bits16,
    out_high: Bits32,
    rows: BitRows,
    spare: BitRows,
) -> bool:
    """As ``ram``: the mean of what several changed, what one alone changed times its factor.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        epsilon: an entry has changed above this magnitude.
        factors: ``[n]``, on what a source alone changed.
        out_low, out_high: where the result goes; either is empty.
        rows: scratch ``[n + 1, WIDTH]``.
        spare: scratch ``[2, WIDTH]``.

    Returns:
        Whether all inputs and results are finite.
    """
    values, n = rows.view(np.float32), factors.size
    total, counts = spare.view(np.float32)[0], spare.view(np.float32)[1]
    zero, one = np.float32(0), np.float32(1)
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= load_all(low, high, row, start, True, rows, w)
        _count_changed(values, n, w, epsilon, counts)
        for j in range(w):
            total[j] = zero
        for i in range(n):
            change, factor = values[1 + i, :w], factors[i]
            for j in range(w):
                part = change[j] if abs(change[j]) > epsilon else zero
                total[j] += part * (factor if counts[j] == one else one)
        base = values[0, :w]
        for j in range(w):
            total[j] = base[j] + total[j] / max(counts[j], one)
        bad |= store(spare[0, :w], out_low, out_high, start)
    return bool(bad < SIGN)


@kernel
def overlaps(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    epsilon: Single,
    shared: Ints,
    unique: Ints,
    rows: BitRows,
    spare: BitRows,
) -> bool:
    """How many entries each source changed together with others, and how many alone.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        epsilon: an entry has changed above this magnitude.
        shared, unique: ``[n]``, for the counts.
        rows: scratch ``[n + 1, WIDTH]``.
        spare: scratch ``[1, WIDTH]``.

    Returns:
        Whether all inputs are finite.
    """
    values, n = rows.view(np.float32), shared.size
    counts = spare.view(np.float32)[0]
    bad = np.uint32(0)
    for i in range(n):
        shared[i] = unique[i] = 0
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= load_all(low, high, row, start, True, rows, w)
        _count_changed(values, n, w, epsilon, counts)
        for i in range(n):
            change = values[1 + i, :w]
            all_of_it, alone = 0, 0
            for j in range(w):
                mine = abs(change[j]) > epsilon
                all_of_it += 1 if mine else 0
                alone += 1 if mine and counts[j] == np.float32(1) else 0
            shared[i] += all_of_it - alone
            unique[i] += alone
    return bool(bad < SIGN)


@kernel
def elect_in_double(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    weights: Reals,
    out_low: Bits16,
    out_high: Bits32,
    rows: BitRows,
    spare: BitRows,
    sums: RealRows,
) -> bool:
    """As ``sce`` with every entry: the task vectors vote as they are, in float64, and those that
    agree are averaged by weight.

    Args:
        low, high, row, m: the inputs' bits; either of the first two is empty.
        weights: ``[n]``, not negative.
        out_low, out_high: where the result goes; either is empty.
        rows: scratch ``[n + 1, WIDTH]``.
        spare: scratch ``[1, WIDTH]``.
        sums: scratch ``[3, WIDTH]``.

    Returns:
        Whether all inputs and results are finite.
    """
    values, n = rows.view(np.float32), weights.size
    total = spare.view(np.float32)[0]
    smallest = np.inf
    for i in range(n):
        if weights[i] != 0 and weights[i] < smallest:
            smallest = weights[i]
    if smallest == np.inf:
        smallest = 1.0
    bad = np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= load_all(low, high, row, start, True, rows, w)
        vote, merged, voters = sums[0, :w], sums[1, :w], sums[2, :w]
        # A zero has a sign, too.
        signs = vote.view(np.int64)
        for j in range(w):
            vote[j] = np.float64(values[1, j])
            merged[j] = 0.0
            voters[j] = 0.0
        for i in range(1, n):
            change = values[1 + i, :w]
            for j in range(w):
                vote[j] += np.float64(change[j])
        for i in range(n):
            change, weight = values[1 + i, :w], weights[i]
            for j in range(w):
                mine = np.float64(change[j]) * weight * (-1.0 if signs[j] < 0 else 1.0)
                merged[j] += mine if mine > 0.0 else 0.0
                voters[j] += weight if mine > 0.0 else 0.0
        base = values[0, :w]
        for j in range(w):
            mean = merged[j] * (-1.0 if signs[j] < 0 else 1.0) / max(voters[j], smallest)
            total[j] = base[j] + np.float32(mean)
        bad |= store(spare[0, :w], out_low, out_high, start)
    return bool(bad < SIGN)
