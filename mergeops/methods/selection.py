"""Exactly which k entries of a tensor are the largest, without sorting or holding it.

The bits of a non-negative float order like integers, so a histogram of the high bits finds the bin
of the k-th largest, and a histogram of the next bits inside that bin refines it (radix selection).
Memory is a few histograms, whatever the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mergeops.methods import Scan
from mergeops.methods.fused import Bits, DigitCounter, count_equal

DIGIT_BITS = 16
MAGNITUDE_BITS = 32
"""Of the keys that kernels count: those of float32."""

Keys = Callable[[Tensor | None, Tensor, int, int], Tensor]
"""``keys(base, sources, row, offset) -> [m]`` int32 or int64, not negative, larger for larger; a
new tensor, which may be overwritten."""


class Cut(NamedTuple):
    """Which entries stay: those above ``key``, and those equal to it up to index ``last``."""

    key: int
    last: int


KEEP_ALL = Cut(-1, -1)
KEEP_NONE = Cut(2**63 - 1, -1)


@dataclass
class _Search:
    """The k-th largest key of one row, found digit by digit."""

    row: int
    wanted: int
    """Its place from the top among the keys with this prefix."""
    prefix: int = 0
    ties: int = 0
    """How many keys have this prefix."""


def find_largest(
    scan: Scan,
    keys: Keys,
    targets: Sequence[tuple[int, int]],
    numel: int,
    *,
    of_task_vectors: bool = False,
) -> tuple[Cut, ...]:
    """The cuts that keep exactly the k largest entries of a row, for each target ``(row, k)``.

    Among equal keys at the cut, the entries with the lowest index stay.

    Args:
        scan: passes over the tensor.
        keys: what to compare.
        targets: row, as ``keys`` understands it, and number of entries to keep.
        numel: elements of the tensor.
        of_task_vectors: whether the keys are the magnitudes of the rows' task vectors: those, the
            kernels know how to count.
    """
    searches = [_Search(row, k) for row, k in targets]
    open_searches = [s for s in searches if 0 < s.wanted < numel]
    _refine(scan, keys, open_searches, of_task_vectors)
    undecided = [s for s in open_searches if s.wanted < s.ties]
    lasts = _find_last_ties(scan, keys, undecided, of_task_vectors) if undecided else []
    last_of = {id(s): last for s, last in zip(undecided, lasts, strict=True)}
    return tuple(
        Cut(search.prefix, last_of.get(id(search), numel))
        if 0 < k < numel
        else (KEEP_NONE if k <= 0 else KEEP_ALL)
        for search, (_, k) in zip(searches, targets, strict=True)
    )


def find_keys(scan: Scan, keys: Keys, places: Sequence[int]) -> list[int]:
    """The k-th largest key of row 0 for each k (from 1) of ``places``."""
    searches = [_Search(0, k) for k in places]
    _refine(scan, keys, searches, False)
    return [search.prefix for search in searches]


def keep_by_key(values: Tensor, keys: Tensor, cut: Cut, offset: int) -> Tensor:
    """Set all entries below the cut to zero, in place.

    Args:
        values: ``[..., m]``, a chunk.
        keys: ``[m]``, of the same chunk.
        cut: from ``find_largest``.
        offset: index of the chunk's first entry.
    """
    if cut == KEEP_ALL:
        return values
    if cut == KEEP_NONE:
        return values.zero_()
    index = torch.arange(offset, offset + keys.numel(), device=keys.device)
    stays = (keys > cut.key) | ((keys == cut.key) & (index <= cut.last))
    return values.masked_fill_(~stays, 0.0)


def magnitude_keys(values: Tensor) -> Tensor:
    """Integers that order like the magnitudes: the bits of ``|values|``."""
    return values.abs().view(key_dtype(values.dtype))


def magnitude(key: int, dtype: torch.dtype) -> float:
    """The number whose key this is."""
    return float(torch.tensor(key, dtype=key_dtype(dtype)).view(dtype))


def key_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integers that are as wide as these floats."""
    return torch.int32 if dtype == torch.float32 else torch.int64


def _refine(scan: Scan, keys: Keys, searches: Sequence[_Search], of_task_vectors: bool) -> None:
    shift: int | None = None
    while searches and shift != 0:
        prefixes = sorted({(s.row, s.prefix) for s in searches})
        histogram, bits = _histogram(scan, keys, prefixes, shift, of_task_vectors)
        shift = (bits if shift is None else shift) - DIGIT_BITS
        for search in searches:
            row = histogram[prefixes.index((search.row, search.prefix))]
            digit, above = _find_digit(row, search.wanted)
            search.wanted -= above
            search.prefix = (search.prefix << DIGIT_BITS) | digit
            search.ties = int(row[digit])


def _histogram(
    scan: Scan,
    keys: Keys,
    prefixes: Sequence[tuple[int, int]],
    shift: int | None,
    of_task_vectors: bool,
) -> tuple[Tensor, int]:
    """Counts ``[len(prefixes), bins]`` of the digit after the prefix, and how many bits a key has.

    ``shift`` is the position of the prefix in the key; None counts the highest digit.
    """
    bits = 0
    # The highest bit of a key is 0, so the first digit has one bit less.
    bins = 2**DIGIT_BITS if shift is not None else 2 ** (DIGIT_BITS - 1)

    def look(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        nonlocal bits
        counts = []
        found: Tensor | None = None
        for (row, prefix), following in zip(prefixes, [*prefixes[1:], None], strict=True):
            if found is None:
                found = keys(base, sources, row, offset)
            digits = found
            if following is not None and following[0] == row:
                digits = found.clone()
            else:
                found = None
            bits = 8 * digits.element_size()
            if shift is None:
                digits >>= bits - DIGIT_BITS
            else:
                # With the prefix taken off, only keys that have it are below 2**shift; the others
                # go to bins beyond the last, spread out since counting one bin is slow.
                digits ^= prefix << shift
                others = torch.bitwise_right_shift(digits, bits - DIGIT_BITS).add_(bins)
                digits >>= shift - DIGIT_BITS
                torch.minimum(digits, others, out=digits)
            counts.append(torch.bincount(digits, minlength=bins)[:bins])
        return torch.stack(counts)

    total = torch.zeros(len(prefixes), bins, dtype=torch.int64)
    if of_task_vectors:
        digits = [(row, -1 if shift is None else prefix) for row, prefix in prefixes]
        counter = DigitCounter(digits, bins)
        for counts in scan(look, fused=counter):
            if counts.numel():
                total += counts
        return total + counter.total(), bits or MAGNITUDE_BITS
    for counts in scan(look):
        total += counts
    return total, bits


def _find_digit(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest (k from 1), and how many lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return histogram.numel() - 1 - position, above


def _find_last_ties(
    scan: Scan, keys: Keys, searches: Sequence[_Search], of_task_vectors: bool
) -> list[int]:
    """Index of the ``wanted``-th entry whose key is the one found, for each search."""

    def count(base: Tensor | None, sources: Tensor, offset: int) -> Tensor:
        ties = [
            torch.count_nonzero(keys(base, sources, s.row, offset) == s.prefix) for s in searches
        ]
        return torch.stack([*ties, torch.tensor(sources.shape[1], device=sources.device)])

    def count_bits(chunk: Bits) -> Tensor | None:
        ties = count_equal(chunk, [(s.row, s.prefix) for s in searches])
        return None if ties is None else torch.cat([ties, torch.tensor([chunk.m])])

    left = [search.wanted for search in searches]
    place: dict[int, tuple[int, int]] = {}
    offset = 0
    for counts in scan(count, fused=count_bits if of_task_vectors else None):
        *found, size = counts.tolist()
        for i, ties in enumerate(found):
            if i in place:
                continue
            if left[i] > ties:
                left[i] -= ties
            else:
                place[i] = (offset, offset + size)
        offset += size
        if len(place) == len(searches):
            break
    lasts = []
    for i, search in enumerate(searches):

        def positions(
            base: Tensor | None, sources: Tensor, offset: int, search: _Search = search
        ) -> Tensor:
            ties = keys(base, sources, search.row, offset) == search.prefix
            return ties.nonzero()[:, 0] + offset

        lasts.append(int(torch.cat(list(scan(positions, *place[i])))[left[i] - 1]))
    return lasts
