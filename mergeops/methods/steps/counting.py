"""What kernels count of a task vector's magnitudes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mergeops.kernels import WIDTH, loaded
from mergeops.methods.steps.fused import Array, Bits, scratch_rows


class Magnitudes(NamedTuple):
    """Keys that kernels know how to count: the magnitudes of task vectors, times a factor for each
    row of the tensor where there are any."""

    factors: Array = np.empty(0, np.float32)
    """``[rows]`` float32, not negative; chunks then hold whole rows."""
    row_length: int = 1

    def of_chunk(self, bits: Bits) -> tuple[int, Array]:
        """The kernels' arguments: the length of a row, and the factors of the chunk's rows."""
        first = bits.offset // self.row_length
        return self.row_length, self.factors[first : first + bits.m // self.row_length]


class DigitCounter:
    """Histograms of magnitudes, to which each thread adds on its own.

    Args:
        magnitudes: what is counted.
        prefixes: k pairs (source, high digit): only magnitudes with this high digit count, by their
            low digit; -1, for all of them, counts all by their high digits.
        bins: values of a digit.
    """

    def __init__(
        self, magnitudes: Magnitudes, prefixes: Sequence[tuple[int, int]], bins: int
    ) -> None:
        self._magnitudes = magnitudes
        self._rows, self._digits = np.array(prefixes, dtype=np.int64).T.copy()
        self._shape = (len(prefixes), bins)
        self._local = threading.local()
        self._counts: list[Array] = []

    def __call__(self, bits: Bits) -> Array | None:
        """Count a chunk: nothing is returned of high digits, of low ones ``not_empty``; None for an
        input not finite."""
        which = self._rows, *self._magnitudes.of_chunk(bits)
        rows = scratch_rows(int(self._rows.max()) + 2)
        if self._digits[0] >= 0:
            return self._low_digits(bits, which, rows)
        counts: Array | None = getattr(self._local, "counts", None)
        if counts is None:
            counts = self._local.counts = np.zeros(self._shape, np.int64)
            self._counts.append(counts)
        if not loaded("count_high_digits")(*bits.arguments, *which, rows, counts):
            return None
        return np.empty(0, np.int64)

    def _low_digits(self, bits: Bits, which: tuple[Any, ...], rows: Array) -> Array | None:
        number, bins = self._shape
        found, hits = np.empty((number, bits.m), np.uint32), np.empty(number, np.int64)
        scratch = rows, np.empty(WIDTH, np.uint32)
        arguments = *bits.arguments, *which, self._digits, *scratch
        if not loaded("find_low_digits")(*arguments, found, hits):
            return None
        counted = [np.array([[-1], [bits.m]])]
        for k, digits in enumerate(found[k, : hits[k]] for k in range(number)):
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


def equal_to(bits: Bits, source: int, key: int) -> Array | None:
    """Indices in the tensor of the entries of a task vector with these magnitude bits, ascending;
    None for an input not finite."""
    found = np.empty(bits.m, np.uint32)
    if not loaded("magnitudes")(*bits.arguments, source, scratch_rows(2), found):
        return None
    return np.flatnonzero(found == key) + bits.offset
