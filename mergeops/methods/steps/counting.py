"""What kernels count of the keys by which entries are selected."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mergeops.kernels import WIDTH, loaded
from mergeops.methods.steps.fused import Array, Bits, scratch_rows

DIGIT_BITS = 16
"""Of a key of 32 bits: the high and the low half."""


class CountedKeys(Protocol):
    """Keys below 2**31, for rows of a tensor, that kernels know how to count."""

    def add_high_digits(self, bits: Bits, rows: Array, counts: Array) -> bool:
        """Add a chunk to the histograms ``[k, bins]`` of the rows ``[k]`` int64; False for an input
        not finite."""

    def low_digits(self, bits: Bits, rows: Array, prefixes: Array) -> list[Array] | None:
        """Low digits of the rows' keys with these high digits; None for an input not finite."""

    def equal_to(self, bits: Bits, row: int, key: int) -> Array | None:
        """Indices in the tensor of a row's entries with this key, ascending; None for an input not
        finite."""


class Magnitudes(NamedTuple):
    """The magnitudes of task vectors, times a factor for each row of the tensor where there are
    any."""

    factors: Array = np.empty(0, np.float32)
    """``[rows]`` float32, not negative; chunks then hold whole rows."""
    row_length: int = 1

    def of_chunk(self, bits: Bits) -> tuple[int, Array]:
        """The kernels' arguments: the length of a row, and the factors of the chunk's rows."""
        first = bits.offset // self.row_length
        return self.row_length, self.factors[first : first + bits.m // self.row_length]

    def add_high_digits(self, bits: Bits, rows: Array, counts: Array) -> bool:
        """See ``CountedKeys``."""
        scratch = scratch_rows(int(rows.max()) + 2)
        arguments = *bits.arguments, rows, *self.of_chunk(bits), scratch, counts
        return bool(loaded("count_high_digits")(*arguments))

    def low_digits(self, bits: Bits, rows: Array, prefixes: Array) -> list[Array] | None:
        """See ``CountedKeys``."""
        found, hits = np.empty((rows.size, bits.m), np.uint32), np.empty(rows.size, np.int64)
        scratch = scratch_rows(int(rows.max()) + 2), np.empty(WIDTH, np.uint32)
        arguments = *bits.arguments, rows, *self.of_chunk(bits), prefixes, *scratch
        if not loaded("find_low_digits")(*arguments, found, hits):
            return None
        return [digits[:number] for digits, number in zip(found, hits, strict=True)]

    def equal_to(self, bits: Bits, row: int, key: int) -> Array | None:
        """See ``CountedKeys``; without factors."""
        found = np.empty(bits.m, np.uint32)
        if not loaded("magnitudes")(*bits.arguments, row, scratch_rows(2), found):
            return None
        return np.flatnonzero(found == key) + bits.offset


class DigitCounter:
    """Histograms of keys, to which each thread adds on its own.

    Args:
        counted: the keys.
        prefixes: k pairs (row, high digit): only keys with this high digit count, by their low
            digit; -1, for all of them, counts all by their high digits.
        bins: values of a digit.
    """

    def __init__(
        self, counted: CountedKeys, prefixes: Sequence[tuple[int, int]], bins: int
    ) -> None:
        self._counted = counted
        self._rows, self._digits = np.array(prefixes, dtype=np.int64).T.copy()
        self._shape = (len(prefixes), bins)
        self._local = threading.local()
        self._counts: list[Array] = []

    def __call__(self, bits: Bits) -> Array | None:
        """Count a chunk: nothing is returned of high digits, of low ones ``not_empty``; None for an
        input not finite."""
        if self._digits[0] >= 0:
            return self._low_digits(bits)
        counts: Array | None = getattr(self._local, "counts", None)
        if counts is None:
            counts = self._local.counts = np.zeros(self._shape, np.int64)
            self._counts.append(counts)
        if not self._counted.add_high_digits(bits, self._rows, counts):
            return None
        return np.empty(0, np.int64)

    def _low_digits(self, bits: Bits) -> Array | None:
        found, bins = self._counted.low_digits(bits, self._rows, self._digits), self._shape[1]
        if found is None:
            return None
        counted = [np.array([[-1], [bits.m]])]
        for k, digits in enumerate(found):
            # Few are sorted sooner than all bins are looked through.
            if digits.size < bins // 4:
                distinct, counts = np.unique(digits, return_counts=True)
                counted.append(np.array([distinct + np.int64(k * bins), counts]))
            else:
                every = np.bincount(digits, minlength=bins)
                bin_of = np.flatnonzero(every)
                counted.append(np.array([bin_of + k * bins, every[bin_of]]))
        return np.concatenate(counted, axis=1)

    def total(self) -> Array:
        """``[k, bins]``, of the high digits of all threads; else zeros."""
        return sum(self._counts, np.zeros(self._shape, np.int64))


def not_empty(histograms: Array, m: int) -> Array:
    """Which counts are not zero.

    Args:
        histograms: ``[k, bins]`` int64.
        m: entries of the chunk.

    Returns:
        ``[2, 1 + found]`` int64: indices in the flattened histograms, ascending, and counts; first
        -1 and m.
    """
    flat = histograms.reshape(-1)
    indices = np.flatnonzero(flat)
    found = np.empty((2, 1 + indices.size), np.int64)
    found[:, 0] = -1, m
    found[:, 1:] = indices, flat[indices]
    return found
