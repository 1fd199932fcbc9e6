"""Selection by each entry's variance over the sources, by kernels."""

from __future__ import annotations

import numpy as np

from mergeops.kernels import WIDTH, loaded
from mergeops.methods.steps.fused import Array, Bits, scratch_rows
from mergeops.methods.steps.selection import KEEP_ALL, Cut


class Variances:
    """Variances as ``counting.CountedKeys`` of one row: the bits of float32."""

    def add_high_digits(self, bits: Bits, rows: Array, counts: Array) -> bool:
        """See ``CountedKeys``."""
        return bool(loaded("count_varying")(*bits.arguments, *_scratch(bits), counts[0]))

    def low_digits(self, bits: Bits, rows: Array, prefixes: Array) -> list[Array] | None:
        """See ``CountedKeys``."""
        found, inside = np.empty(bits.m, np.uint32), np.empty(WIDTH, np.uint32)
        arguments = *bits.arguments, int(prefixes[0]), *_scratch(bits), inside
        hits = loaded("find_varying")(*arguments, found)
        return None if hits < 0 else [found[:hits]]

    def equal_to(self, bits: Bits, row: int, key: int) -> Array | None:
        """See ``CountedKeys``."""
        found = np.empty(bits.m, np.uint32)
        if not loaded("variances")(*bits.arguments, *_scratch(bits), found):
            return None
        return np.flatnonzero(found == key) + bits.offset


def count_differing(bits: Bits) -> Array | None:
    """How many entries the sources do not agree on; None for an input not finite."""
    number = loaded("count_differing")(*bits.arguments, *_scratch(bits))
    return None if number < 0 else np.array(number)


def keep_varying(bits: Bits, cut: Cut) -> Bits | None:
    """The chunk with the base's entries in place of those whose variance is below the cut, so that
    they change nothing; None for an input not finite."""
    if cut == KEEP_ALL:
        return bits
    low, high = (np.empty(min(x.size, bits.parts * bits.m), x.dtype) for x in bits[:2])
    which = cut.key, cut.last - bits.offset
    if not loaded("keep_varying")(*bits.arguments, *which, *_scratch(bits), low, high):
        return None
    return bits._replace(low=low, high=high, row=bits.m)


def _scratch(bits: Bits) -> tuple[Array, Array]:
    return scratch_rows(bits.parts + 1), np.empty((bits.parts + 1, WIDTH))
