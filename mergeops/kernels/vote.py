"""The vote on each entry's sign, and the mean of those that agree."""

from __future__ import annotations

import numpy as np

from mergeops.kernels.bits import SIGN, inlined, written_out
from mergeops.kernels.plain import MOST
from mergeops.kernels.types import Array


@written_out
def _agreeing(value: np.float32, sign: np.uint32) -> np.float32:
    """The magnitude of a value with this sign, else zero."""
    turned: np.float32 = np.uint32(np.float32(value).view(np.uint32) ^ sign).view(np.float32)
    return turned if turned > np.float32(0) else np.float32(0)


@written_out
def _elect_few(
    n: int,
    values: Array,
    first: int,
    factors: Array,
    weights: Array,
    normalize: bool,
    least: np.float32,
    total: Array,
) -> None:
    w, zero = total.size, np.float32(0)
    # Those beyond the last vector are not looked at; here they are others of the vectors.
    one, two = values[first, :w], values[first + 1, :w]
    three, four = values[first + 2 % n, :w], values[first + 3 % n, :w]
    by_1, by_2, by_3, by_4 = weights[0], weights[1], weights[2 % n], weights[3 % n]
    of_1, of_2, of_3, of_4 = factors[0], factors[1], factors[2 % n], factors[3 % n]
    signs = total.view(np.uint32)
    for j in range(w):
        a, b = np.float32(one[j] * of_1 * by_1), np.float32(two[j] * of_2 * by_2)
        c, d = np.float32(three[j] * of_3 * by_3), np.float32(four[j] * of_4 * by_4)
        # The vote: the sign of the sum of the weighted vectors.
        votes = a + b
        if n > 2:
            votes += c
        if n > 3:
            votes += d
        sign = np.uint32(np.float32(votes).view(np.uint32) & SIGN)
        a, b, c, d = _agreeing(a, sign), _agreeing(b, sign), _agreeing(c, sign), _agreeing(d, sign)
        # The disjoint mean: sum of those that agree, over their weight.
        merged = a + b
        voters = (abs(by_1) if a > zero else zero) + (abs(by_2) if b > zero else zero)
        if n > 2:
            merged += c
            voters += abs(by_3) if c > zero else zero
        if n > 3:
            merged += d
            voters += abs(by_4) if d > zero else zero
        if normalize:
            merged /= voters if voters > least else least
        signs[j] = np.uint32(np.float32(merged).view(np.uint32) ^ sign)


@inlined
def elect(
    rows: Array,
    values: Array,
    first: int,
    factors: Array,
    weights: Array,
    normalize: bool,
    total: Array,
    merged: Array,
    voters: Array,
) -> None:
    """As ``consensus.elect_and_average``, of ``factors`` times the vectors, which begin with row
    ``first``; the result is in ``total``."""
    w, n = total.size, weights.size
    # The least weight that a voter has; by it zero is divided where nobody votes.
    least = np.float32(np.inf)
    for i in range(n):
        weight = abs(weights[i])
        if weight != 0 and weight < least:
            least = weight
    if least == np.float32(np.inf):
        least = np.float32(1)
    if n == 2:
        _elect_few(2, values, first, factors, weights, normalize, least, total)
        return
    if n == 3:
        _elect_few(3, values, first, factors, weights, normalize, least, total)
        return
    if n == MOST:
        _elect_few(MOST, values, first, factors, weights, normalize, least, total)
        return
    # The vote: the sign of the sum of the weighted vectors, in ``total``.
    for i in range(weights.size):
        vector, factor, weight = values[first + i, :w], factors[i], weights[i]
        if i == 0:
            for j in range(total.size):
                vector[j] = vector[j] * factor * weight
                total[j] = vector[j]
        else:
            for j in range(total.size):
                vector[j] = vector[j] * factor * weight
                total[j] += vector[j]
    # The disjoint mean: sum of those that agree, and their weight.
    zero = np.float32(0)
    merged[:] = zero
    voters[:] = zero
    signs = total.view(np.uint32)
    for i in range(weights.size):
        bits, weight = rows[first + i, :w], abs(weights[i])
        vector = values[first + i, :w]
        # Positive where the vector agrees with the vote.
        for j in range(w):
            bits[j] ^= signs[j] & SIGN
        for j in range(w):
            agrees = vector[j] > zero
            merged[j] += vector[j] if agrees else zero
            voters[j] += weight if agrees else zero
    if normalize:
        for j in range(w):
            merged[j] /= voters[j] if voters[j] > least else least
    # The mean gets the elected sign.
    averages = merged.view(np.uint32)
    for j in range(w):
        signs[j] = averages[j] ^ (signs[j] & SIGN)
