"""How important the changes of rows are: Arcee Fusion's divergences, and what is taken by them.

The exponentials and logarithms between these steps are torch's, whose last bits others do not have.
"""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import SIGN, WIDTH, inlined, kernel, load_all, store
from mergeops.kernels.products import tree_sum
from mergeops.kernels.types import (
    Array,
    BitRows,
    Bits16,
    Bits32,
    Index,
    Real,
    RealRows,
    Reals,
    Singles,
)


@inlined
def multiply_rows(values: Array, index: int, length: int, factors: Array) -> None:
    """Multiply entries from ``index`` of a chunk on by the factor of their row."""
    at = 0
    while at < values.size:
        row = (index + at) // length
        end, factor = min((row + 1) * length - index, values.size), factors[row]
        for j in range(at, end):
            values[j] *= factor
        at = end


@kernel
def exponents(
    low: Bits16,
    high: Bits32,
    row: Index,
    begin: Index,
    length: Index,
    rows: BitRows,
    out: RealRows,
) -> bool:
    """What the softmax of each row takes the exponentials of: entries less the row's largest.

    Args:
        low, high, row: the inputs' bits, base and source; either of the first two is empty.
        begin: index in the chunk of the first entry.
        length: entries of a row.
        rows: scratch ``[2, WIDTH]`` uint32.
        out: ``[2, k]`` float64 of the base and the source, whole rows.

    Returns:
        Whether all inputs are finite.
    """
    values, bad = rows.view(np.float32), np.uint32(0)
    for start in range(0, out.shape[1], WIDTH):
        w = min(WIDTH, out.shape[1] - start)
        bad |= load_all(low, high, row, begin + start, False, rows, w)
        for i in range(2):
            target = out[i, start : start + w]
            for j in range(w):
                target[j] = np.float64(values[i, j])
    for i in range(2):
        for first in range(0, out.shape[1], length):
            entries = out[i, first : first + length]
            largest = entries[0]
            for j in range(length):
                largest = max(largest, entries[j])
            for j in range(length):
                entries[j] -= largest
    return bool(bad < SIGN)


@kernel
def soften(length: Index, softening: Real, terms: Reals, powers: RealRows) -> None:
    """From exponentials to the softened softmax of each row, in place.

    Args:
        length: entries of a row.
        softening: added to each probability.
        terms: scratch ``[length]`` float64.
        powers: ``[2, k]`` float64, whole rows.
    """
    for i in range(2):
        for first in range(0, powers.shape[1], length):
            entries = powers[i, first : first + length]
            for j in range(length):
                terms[j] = entries[j]
            total = tree_sum(terms)
            for j in range(length):
                entries[j] = entries[j] / total + softening


@kernel
def diverge(length: Index, softmax: RealRows, logs: RealRows, terms: Reals, out: Singles) -> None:
    """Kullback-Leibler divergence of the source's softmax from the base's in each row.

    Args:
        length: entries of a row.
        softmax, logs: ``[2, k]`` float64 of base and source, from ``soften``, and its logarithm.
        terms: scratch ``[length]`` float64.
        out: ``[k / length]`` float32.
    """
    for r in range(out.size):
        first = r * length
        ours, of_ours = softmax[1, first : first + length], logs[1, first : first + length]
        of_theirs = logs[0, first : first + length]
        # Sum of p log(p / q).
        for j in range(length):
            terms[j] = ours[j] * (of_ours[j] - of_theirs[j])
        out[r] = np.float32(max(tree_sum(terms), 0.0))


@kernel
def take_important(
    low: Bits16,
    high: Bits32,
    row: Index,
    m: Index,
    length: Index,
    factors: Singles,
    threshold: Real,
    out_low: Bits16,
    out_high: Bits32,
    rows: BitRows,
    spare: BitRows,
) -> bool:
    """As ``arcee_fusion``: the source where its change is important, the base elsewhere.

    Args:
        low, high, row, m: the inputs' bits, base and source; either of the first two is empty.
        length: entries of a row.
        factors: ``[m / length]`` float32, divergences of the chunk's rows.
        threshold: the least important change.
        out_low, out_high: where the result goes; either is empty.
        rows: scratch ``[2, WIDTH]`` uint32.
        spare: scratch ``[2, WIDTH]`` uint32.

    Returns:
        Whether all inputs are finite, and all results in the format that is saved.
    """
    values, bad = rows.view(np.float32), np.uint32(0)
    for start in range(0, m, WIDTH):
        w = min(WIDTH, m - start)
        bad |= load_all(low, high, row, start, False, rows, w)
        importance = spare.view(np.float32)[1, :w]
        for j in range(w):
            importance[j] = abs(values[1, j] - values[0, j])
        multiply_rows(importance, start, length, factors)
        theirs, ours, taken = rows[0, :w], rows[1, :w], spare[0, :w]
        for j in range(w):
            taken[j] = ours[j] if np.float64(importance[j]) >= threshold else theirs[j]
        bad |= store(taken, out_low, out_high, start)
    return bool(bad < SIGN)
